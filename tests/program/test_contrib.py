"""What is shipped for operators: systemd understands the units, the program does what they say, the example works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import smtplib
import socket
import subprocess
import time
from configparser import RawConfigParser
from pathlib import Path

import pytest
import trustme

from pillarbox.cli.config import effective
from program import MODULE, WAIT

CONTRIB = Path(__file__).parents[2] / "contrib"
SYSTEMD = CONTRIB / "systemd"
EXAMPLE = CONTRIB / "pillarbox.toml"


def unit(name: str) -> RawConfigParser:
    """Return a unit's sections."""
    parser = RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the library's page says
    parser.read_string((SYSTEMD / name).read_text())
    return parser


def example(folder: Path) -> str:
    """Return the example with all its files in a folder, where they are."""
    made = trustme.CA().issue_cert("mx.example.com")
    made.private_key_pem.write_to_path(folder / "mx.key")
    (folder / "mx.key").chmod(0o600)
    made.cert_chain_pems[0].write_to_path(folder / "mx.pem")
    (folder / "users").touch(mode=0o600)
    return EXAMPLE.read_text().replace("/etc/pillarbox", str(folder)).replace("/var/lib/pillarbox", str(folder))


class TestExample:
    def test_check_has_no_doubt_of_it(self, tmp_path: Path) -> None:
        path = tmp_path / "pillarbox.toml"
        path.write_text(example(tmp_path))
        command = [*MODULE, "check", str(path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT)
        assert found.stdout.endswith("No warnings.\n")

    def test_strangers_write_to_us_and_users_to_all(self, tmp_path: Path) -> None:
        path = tmp_path / "pillarbox.toml"
        path.write_text(example(tmp_path))
        found = effective(str(path))
        inbound, submission = found.listeners
        assert (inbound.options.must_authenticate, submission.options.must_authenticate) == (False, True)
        assert inbound.access.accept is not None
        assert "anybody@example.net" not in inbound.access.accept
        for listener in found.listeners:
            routes = found.routes_of(listener)
            assert [[route.target.url for route in routes.of(f"x@{domain}")] for domain in ("example.com", "a.b")] == [
                [f"maildir:{tmp_path}/mail/{{domain}}/{{mailbox}}"],
                ["smtp://localhost:10025"],
            ]


class TestUnits:
    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
    def test_systemd_understands_them(self, tmp_path: Path) -> None:
        for name in ("pillarbox.service", "pillarbox.socket"):
            text = (SYSTEMD / name).read_text().replace("/usr/local/bin/pillarbox", "/bin/true")
            (tmp_path / name).write_text(text)
        units = [str(tmp_path / f"pillarbox.{kind}") for kind in ("service", "socket")]
        command = ["systemd-analyze", "verify", "--man=no", *units]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT)
        ours = [line for line in found.stderr.splitlines() if "pillarbox" in line]
        assert (found.returncode, ours) == (0, [])

    def test_the_wait_for_the_end_is_longer_than_ours(self) -> None:
        service = unit("pillarbox.service")["Service"]
        assert float(service["TimeoutStopSec"]) > (effective().options.close_timeout or 0)
        assert service["RestartPreventExitStatus"] == "2"

    def test_an_account_is_made(self) -> None:
        service = unit("pillarbox.service")["Service"]
        kind, name, *_ = shlex.split((SYSTEMD / "pillarbox.sysusers.conf").read_text())
        assert (kind, name) == ("u", service["User"])

    @pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is missing")
    def test_the_service_is_started_by_its_socket(self, tmp_path: Path) -> None:
        service, sock = unit("pillarbox.service")["Service"], unit("pillarbox.socket")["Socket"]
        name = sock["FileDescriptorName"]
        (tmp_path / "pillarbox.toml").write_text(
            example(tmp_path).replace('":25"', f'"fd:{name}"').replace(':465"', ':0"')
        )
        program, *arguments = shlex.split(service["ExecStart"])
        assert program.endswith("/pillarbox")
        arguments = [each.replace("/etc/pillarbox", str(tmp_path)) for each in arguments]
        arguments += ["--metrics", "127.0.0.1:0"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(WAIT)
        known = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        setenv = [f"--setenv={each}={value}" for each, value in known.items() if value]
        activate = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", f"--fdname={name}", *setenv]
        process = subprocess.Popen([*activate, *MODULE, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            with connected(port) as client, notified:
                assert notified.recv(1000) == b"READY=1"
                client.sendmail("a@example.org", ["joe@example.com"], b"Subject: x\r\n\r\nbody\r\n")
                with pytest.raises(smtplib.SMTPRecipientsRefused):
                    client.sendmail("a@example.org", ["joe@example.net"], b"Subject: x\r\n\r\nbody\r\n")
                reload = re.fullmatch(r"/bin/kill -(\w+) \$MAINPID", service["ExecReload"])
                assert reload is not None
                process.send_signal(signal.Signals[f"SIG{reload[1]}"])
                assert notified.recv(1000).startswith(b"RELOADING=1\n")
                assert notified.recv(1000) == b"READY=1"
                process.send_signal(signal.SIGTERM)
                assert notified.recv(1000) == b"STOPPING=1"
            assert process.wait(WAIT) == 0
            assert len(list((tmp_path / "mail/example.com/joe/new").iterdir())) == 1
        finally:
            process.kill()
            process.communicate(timeout=WAIT)


def connected(port: int) -> smtplib.SMTP:
    deadline = time.monotonic() + WAIT
    while True:  # it is systemd-socket-activate that listens: of that nobody is told
        try:
            return smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_container_copies_what_it_needs() -> None:
    """No engine is needed to see that what the file copies is there, and what it runs is the program's."""
    text = (CONTRIB / "container/Containerfile").read_text()
    ignored = (CONTRIB.parent / ".dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    assert all((CONTRIB.parent / each).exists() for each in kept)
    assert kept >= {"src", "pyproject.toml", "README.md", "LICENSE"}  # what a build of the distribution reads
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    arguments = [each.strip('", ') for each in command.strip("[]").split(", ")]
    found = subprocess.run(
        [*MODULE, "check", *arguments[1:]], capture_output=True, text=True, check=False, timeout=WAIT
    )
    assert found.returncode == 0, found.stderr
