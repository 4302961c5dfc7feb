"""``pillarbox send`` against real servers: what arrives, what is shown, and how it ends."""

from __future__ import annotations

import base64
import email
import email.policy
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.conftest import Run, Serving
from interop.peers import HOST, NOBODY, PASSWORD, TRICKY, USER, Server, missing, program
from interop.postfix import Postfix
from interop.test_dovecot import dovecot
from pillarbox import ConfigurationError
from pillarbox.cli.client import Client
from pillarbox.cli.message import size_of
from pillarbox.cli.peer import Peer, peer_from_text

TO = ("--to", "ann@example.com")


def at(server: Server, scheme: str = "smtp", user: str = "") -> tuple[str, str]:
    port = {"smtp": server.port, "smtps": server.tls_port, "lmtp": server.lmtp_port}[scheme]
    return "--server", f"{scheme}://{user}{HOST}:{port}"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


class TestPeer:
    @pytest.mark.parametrize(
        ("text", "peer"),
        [
            ("mx.example.com", Peer("mx.example.com", 25)),
            ("127.0.0.1:2525", Peer("127.0.0.1", 2525)),
            ("[::1]:2525", Peer("::1", 2525)),
            ("mx.example.com:465", Peer("mx.example.com", 465, implicit_tls=True)),
            ("smtp://mx.example.com:465", Peer("mx.example.com", 465)),
            ("smtp://joe@mx.example.com:587", Peer("mx.example.com", 587, user="joe")),
            ("smtp://joe%40example.com@mx.example.com/", Peer("mx.example.com", 25, user="joe@example.com")),
            (
                "smtps://joe@example.com@mx.example.com",
                Peer("mx.example.com", 465, implicit_tls=True, user="joe@example.com"),
            ),
            ("LMTP://localhost", Peer("localhost", 24, lmtp=True)),
            ("unix:/run/smtp", Peer(path="/run/smtp")),
            ("lmtp+unix:///run/lmtp", Peer(path="/run/lmtp", lmtp=True)),
            ("lmtp+unix:lmtp", Peer(path="lmtp", lmtp=True)),
            ("lmtp:/run/lmtp", Peer(path="/run/lmtp", lmtp=True)),
            ("lmtp:///run/lmtp", Peer(path="/run/lmtp", lmtp=True)),
            ("smtp:run/smtp", Peer(path="run/smtp")),
            ("smtp:2525", Peer("smtp", 2525)),
        ],
    )
    def test_understood(self, text: str, peer: Peer) -> None:
        assert peer_from_text(text) == peer

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is no server"),
            ("a b", "is no server"),
            ("host:", "is no server|25"),
            ("host:smtp", "is no server"),
            ("host:70000", "is no server"),
            ("::1:25", "brackets"),
            ("http://host", "unknown scheme 'http'"),
            ("smtp://host/path", "is no server"),
            ("smtp://joe:secret@host", "a password in an argument can be seen by others"),
            ("unix:", "names no socket"),
            ("lmtp+unix:", "names no socket"),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        if text == "host:":  # the standard library takes it as no port
            assert peer_from_text(text) == Peer("host", 25)
            return
        with pytest.raises(ConfigurationError, match=message) as caught:
            peer_from_text(text)
        assert "secret" not in str(caught.value)


class TestMessages:
    def test_made_up(self, run: Run, server: Server, tmp_path: Path) -> None:
        photo = tmp_path / "photo.png"
        photo.write_bytes(b"\x89PNG\r\n\0" * 100)
        result = run(
            "send", *TO, *at(server), "--subject", "Grüße", "--body", "Schöne Grüße\n.\nEnde", "--attach", photo,
            "--header", "X-Test: yes", "--header", "Date: Sat, 07 Mar 2026 09:05:03 +0000",
        )  # fmt: skip
        assert (result.exit_code, result.stdout) == (0, "accepted: ann@example.com: 250 OK: message queued\n")
        got = email.message_from_bytes(server.delivery.content, policy=email.policy.default)
        assert (got["Subject"], got["X-Test"], got["To"]) == ("Grüße", "yes", "ann@example.com")
        assert got.get_all("Date") == ["Sat, 07 Mar 2026 09:05:03 +0000"]
        body = got.get_body()
        assert body is not None
        assert body.get_content().replace("\r\n", "\n") == "Schöne Grüße\n.\nEnde\n"
        [attachment] = got.iter_attachments()
        assert (attachment.get_filename(), attachment.get_content_type()) == ("photo.png", "image/png")
        assert attachment.get_content() == photo.read_bytes()

    def test_a_server_without_8bitmime_gets_7_bit(self, run: Run, serving: Serving) -> None:
        with serving(hide_8bitmime=True) as server:
            assert run("send", *TO, *at(server), "--body", "Grüße").exit_code == 0
            assert server.delivery.content.isascii()
            assert server.delivery.envelope.body_type is None or str(server.delivery.envelope.body_type) != "8BITMIME"
            got = email.message_from_bytes(server.delivery.content, policy=email.policy.default)
            assert got.get_content().strip() == "Grüße"

    @pytest.mark.parametrize("size", ["1000", "64k", "1M", *map(str, range(560, 560 + 76, 15))])
    def test_filled_up(self, run: Run, server: Server, size: str) -> None:
        assert run("send", *TO, *at(server), "--size", size, "-q").exit_code == 0
        assert abs(len(server.delivery.content) - size_of(size)) <= 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--subject", "a\nb"], r"Subject: 'a\\nb' cannot stand there \(Header values may not"),
            (["--header", "Cc: a@b.c", "--header", "Cc: d@e.f"], r"Cc: 'd@e.f' cannot stand there \(There may be"),
            (["--header", "Reply-To: <"], "Reply-To: '<' cannot stand there"),
            (["--to", "bob@"], "To: 'ann@example.com, bob@' cannot stand there"),
            (["--body", "b\udce9"], "--body: it is not UTF-8"),
        ],
    )
    def test_what_no_message_can_have(self, run: Run, server: Server, arguments: list[str], message: str) -> None:
        result = run("send", *TO, *at(server), *arguments)
        assert result.exit_code == 2
        assert re.search(message, result.stderr)

    def test_a_size_that_is_too_small(self, run: Run, server: Server) -> None:
        result = run("send", *TO, *at(server), "--size", "10")
        assert result.exit_code == 2
        assert "Error: --size 10: the message has" in result.stderr

    @pytest.mark.parametrize("text", ["", "M", "1T", "-1", "1.5M", "1e3"])
    def test_no_size(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="write a number of bytes"):
            size_of(text)

    def test_a_file_as_it_is(self, run: Run, server: Server, tmp_path: Path) -> None:
        file = tmp_path / "message.eml"
        file.write_bytes(TRICKY.replace(b"\r\n", b"\n"))
        result = run("send", *TO, "--from", "bob@example.org", *at(server), file)
        assert result.exit_code == 0
        assert server.delivery.content == TRICKY
        assert server.delivery.mail_from == "bob@example.org"
        assert "MAIL FROM:<bob@example.org> BODY=8BITMIME" in result.stderr

    def test_standard_input_and_an_empty_reverse_path(self, run: Run, server: Server) -> None:
        result = run("send", *TO, "--from", "", *at(server), "-", octets=b"Subject: x\n\nold Mac\rlast line")
        assert result.exit_code == 0
        assert server.delivery.content == b"Subject: x\r\n\r\nold Mac\r\nlast line\r\n"
        assert server.delivery.mail_from == ""

    def test_several_recipients_parameters_and_times(self, run: Run, serving: Serving) -> None:
        with serving(hide_dsn=False, size=100_000) as server:
            result = run(
                "send", *TO, "--to", "bob@example.com", *at(server), "--count", "3", "--mail-parameter", "RET=HDRS",
                "--rcpt-parameter", "NOTIFY=NEVER",
            )  # fmt: skip
            assert result.exit_code == 0
            assert result.stdout.count("accepted: ann@example.com") == result.stdout.count("accepted: bob@") == 3
            assert [each.rcpt_to for each in server.deliveries] == [("ann@example.com", "bob@example.com")] * 3
            assert len({each.content.partition(b"Message-ID:")[2] for each in server.deliveries}) == 3
            assert str(server.deliveries[0].envelope.dsn.ret) == "HDRS"
            assert "SIZE=" in result.stderr
            assert server.verbs().count("QUIT") == 1


class TestInternational:
    def test_smtputf8(self, run: Run, server: Server) -> None:
        result = run("send", "--to", "grüße@münchen.example", *at(server))
        assert result.exit_code == 0
        assert server.delivery.rcpt_to == ("grüße@münchen.example",)
        assert server.delivery.smtp_utf8
        assert "To: grüße@münchen.example".encode() in server.delivery.content

    def test_without_smtputf8_the_domain_goes_in_ascii(self, run: Run, serving: Serving) -> None:
        with serving(hide_smtputf8=True) as server:
            assert run("send", "--to", "joe@münchen.example", *at(server)).exit_code == 0
            assert "RCPT TO:<joe@xn--mnchen-3ya.example>" in server.commands

    def test_without_smtputf8_a_local_part_cannot_go(self, run: Run, serving: Serving) -> None:
        with serving(hide_smtputf8=True) as server:
            result = run("send", "--to", "grüße@example.com", *at(server))
            assert result.exit_code == 69
            assert "grüße@example.com needs SMTPUTF8, which 127.0.0.1" in result.stderr
            assert server.deliveries == []


class TestTranscript:
    def test_what_is_shown(self, run: Run, server: Server) -> None:
        result = run("send", *TO, *at(server))
        lines = result.stderr.splitlines()
        assert lines[1] == "S: 220 mx.example.com ESMTP"
        assert "C: RCPT TO:<ann@example.com>" in lines
        assert "C: ." in lines
        assert "S: 250 OK: message queued" in lines
        assert "\x1b" not in result.output  # no colours where there is no terminal

    def test_quiet(self, run: Run, server: Server) -> None:
        assert run("send", *TO, *at(server), "--quiet").stderr == ""

    def test_a_long_message_is_shortened(self, run: Run, server: Server) -> None:
        result = run("send", *TO, *at(server), "--size", "100k")
        assert len(result.stderr) < 4000
        assert "bytes more" in result.stderr

    def test_what_a_server_says_does_not_steer_the_terminal(self, run: Run, saying: Callable[[bytes], int]) -> None:
        port = saying(b"554 \x1b[2Jgone\x07 \x9b\r\n")
        result = run("send", *TO, "--server", f"{HOST}:{port}")
        assert result.exit_code == 69
        assert "refused: 554 ?[2Jgone?" in result.stderr
        assert not {"\x1b", "\x07", "\x9b"} & set(result.output)


class TestTLS:
    def test_auto_takes_starttls_and_trusts_this_host(self, run: Run, server: Server) -> None:
        result = run("send", *TO, *at(server))
        assert server.delivery.transmission_type == "ESMTPS"
        assert "the certificate is not verified: this host's own server" in result.stderr

    def test_never(self, run: Run, server: Server) -> None:
        assert run("send", *TO, *at(server), "--tls", "never").exit_code == 0
        assert server.delivery.transmission_type == "ESMTP"

    @pytest.mark.usefixtures("trusting")
    @pytest.mark.parametrize("scheme", ["smtp", "smtps"])
    def test_always_verifies(self, run: Run, server: Server, scheme: str) -> None:
        result = run("send", *TO, *at(server, scheme), "--tls", "always")
        assert result.exit_code == 0, result.output
        assert "not verified" not in result.stderr
        assert server.delivery.transmission_type == "ESMTPS"

    @pytest.mark.parametrize("scheme", ["smtp", "smtps"])
    def test_a_certificate_that_is_not_trusted(self, run: Run, server: Server, scheme: str) -> None:
        result = run("send", *TO, *at(server, scheme), "--tls", "always")
        assert result.exit_code == 76
        assert (
            "is not trusted: unable to get local issuer certificate (--insecure goes on all the same)" in result.stderr
        )
        assert server.deliveries == []
        assert run("send", *TO, *at(server, scheme), "--tls", "always", "--insecure").exit_code == 0
        assert server.delivery.transmission_type == "ESMTPS"

    @pytest.mark.usefixtures("trusting")
    def test_a_certificate_for_another_name(self, run: Run, serving: Serving) -> None:
        with serving("other.example.com") as server:
            result = run("send", *TO, *at(server), "--tls", "always")
            assert result.exit_code == 76
            assert "IP address mismatch" in result.stderr

    def test_always_and_none_is_offered(self, run: Run, serving: Serving) -> None:
        with serving(hide_starttls=True) as server:
            result = run("send", *TO, *at(server), "--tls", "always")
            assert result.exit_code == 76
            assert "does not offer STARTTLS (--tls auto goes on without)" in result.stderr
            assert run("send", *TO, *at(server)).exit_code == 0

    def test_implicit_tls_where_there_is_none(self, run: Run, server: Server) -> None:
        result = run("send", *TO, "--server", f"smtps://{HOST}:{server.port}")
        assert result.exit_code == 76
        assert "the server does not speak TLS here (smtp:// is plaintext first" in result.stderr


class TestAuth:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
    def test_logs_in_and_hides_how(self, run: Run, serving: Serving, password_file: Path, mechanism: str) -> None:
        with serving(auth_methods=[mechanism]) as server:
            result = run("send", *TO, *at(server, user=f"{USER}@"), "--password-file", password_file)
            assert result.exit_code == 0, result.output
            assert (server.delivery.user, server.delivery.method) == (USER, mechanism)
            assert f"C: AUTH {mechanism}" in result.stderr
            assert "C: ********" in result.stderr or "PLAIN ********" in result.stderr
            for secret in (PASSWORD, "c2VjcmV0", "AGFsaWNlAHNlY3JldA=="):
                assert secret not in result.output

    def test_from_the_environment(self, run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PILLARBOX_PASSWORD", PASSWORD)
        assert run("send", *TO, *at(server, user=f"{USER}@")).exit_code == 0
        assert server.delivery.user == USER

    def test_none_and_nobody_to_ask(self, run: Run, server: Server) -> None:
        result = run("send", *TO, *at(server, user=f"{USER}@"))
        assert result.exit_code == 2
        assert f"no password for {USER}: use --password-file PATH, or set PILLARBOX_PASSWORD" in result.stderr

    def test_asked_for_on_the_terminal(self, server: Server, tmp_path: Path) -> None:
        terminal, child = os.openpty()
        command = [sys.executable, "-m", "pillarbox", "send", *TO, *at(server, user=f"{USER}@")]
        with subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, start_new_session=True, cwd=tmp_path
        ) as process:
            os.close(child)
            said = _until(terminal, b"Password of alice: ")
            os.write(terminal, f"{PASSWORD}\n".encode())
            said += _until(terminal, b"accepted: ann@example.com")
            assert process.wait(20) == 0
        os.close(terminal)
        assert PASSWORD.encode() not in said
        assert b"\x1b[" in said  # a terminal has colours
        assert server.delivery.user == USER

    def test_refused(self, run: Run, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PILLARBOX_PASSWORD", "wrong")
        with serving(auth_failure_delay=0) as server:
            result = run("send", *TO, *at(server, user=f"{USER}@"))
            assert result.exit_code == 77
            assert "Error: the login of alice was refused: 535" in result.stderr
            assert server.verbs().count("AUTH") == 1

    @pytest.mark.parametrize(
        ("mechanism", "told"), [("LOGIN", PASSWORD), ("LOGIN", "abcdef"), ("PLAIN", f"\0{USER}\0{PASSWORD}")]
    )
    def test_a_server_that_repeats_what_it_does_not_know(
        self, run: Run, saying: Callable[[bytes], int], tmp_path: Path, mechanism: str, told: str
    ) -> None:
        (tmp_path / "password").write_text(told.rpartition("\0")[2])
        secret = base64.b64encode(told.encode()).decode()
        replies = b"334 x\r\n" * (2 if mechanism == "LOGIN" else 0) + f"500 what is {secret}?\r\n".encode()
        port = saying(f"220 x\r\n250-x\r\n250 AUTH {mechanism}\r\n".encode() + replies)
        login = ("--server", f"smtp://{USER}@{HOST}:{port}", "--password-file", tmp_path / "password")
        result = run("send", *TO, *login)
        assert result.exit_code == 77
        assert secret not in result.output
        assert result.output.count("500 what is ********?") == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"disabled_commands": ["AUTH"]}, "offers no AUTH: send knows PLAIN, LOGIN, CRAM-MD5"),
            ({"auth_methods": ["XOAUTH2"]}, "offers AUTH XOAUTH2: send knows"),
        ],
    )
    def test_no_mechanism(
        self, run: Run, serving: Serving, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
    ) -> None:
        monkeypatch.setenv("PILLARBOX_PASSWORD", PASSWORD)
        with serving(**options) as server:
            result = run("send", *TO, *at(server, user=f"{USER}@"))
            assert result.exit_code == 77
            assert message in result.stderr

    def test_no_password_goes_to_a_distant_server_without_tls(
        self, run: Run, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PILLARBOX_PASSWORD", PASSWORD)
        monkeypatch.setattr(Client, "local", False)
        with serving(disabled_commands=["STARTTLS"]) as server:
            result = run("send", *TO, *at(server, user=f"{USER}@"))
            assert result.exit_code == 77
            assert "no login without TLS, which 127.0.0.1" in result.stderr
            assert "AUTH" not in server.verbs()
            assert run("send", *TO, *at(server, user=f"{USER}@"), "--insecure").exit_code == 0
            assert server.delivery.method == "CRAM-MD5"


class TestLMTP:
    def test_each_recipient_has_its_reply(self, run: Run, server: Server) -> None:
        result = run(
            "send", *TO, "--to", "full@example.com", "--to", NOBODY, "--to", "bob@example.com", *at(server, "lmtp")
        )
        assert result.exit_code == 69
        assert result.stdout.splitlines() == [
            "accepted: ann@example.com: 250 OK: message accepted",
            "refused: full@example.com: 452 Mailbox full",
            "refused: nobody@example.com: 550 No such user here",
            "accepted: bob@example.com: 250 OK: message accepted",
        ]

    def test_some_replies_do_not_come(self, run: Run, saying: Callable[[bytes], int]) -> None:
        port = saying(b"220 x\r\n250 x\r\n" + b"250 ok\r\n" * 3 + b"354 go on\r\n250 has it\r\n")
        result = run("send", *TO, "--to", "bob@example.com", "--server", f"lmtp://{HOST}:{port}")
        assert result.exit_code == 75
        assert result.stdout.splitlines() == [
            "accepted: ann@example.com: 250 has it",
            "refused: bob@example.com: 421 no reply came: Connection unexpectedly closed",
        ]

    def test_by_unix_socket(self, run: Run, server: Server) -> None:
        result = run("send", *TO, "--server", f"lmtp+unix:{server.lmtp_path}", "--tls", "never")
        assert result.exit_code == 0
        assert server.delivery.transmission_type == "LMTP"


class TestStatus:
    def test_all_recipients_are_refused(self, run: Run, server: Server) -> None:
        result = run("send", "--to", NOBODY, *at(server), "--count", "2")
        assert (result.exit_code, result.stdout) == (69, f"refused: {NOBODY}: 550 No such user here\n" * 2)
        assert "DATA" not in server.verbs()

    def test_for_now(self, run: Run, server: Server) -> None:
        result = run("send", "--to", "full@example.com", *at(server, "lmtp"))
        assert (result.exit_code, result.stdout) == (75, "refused: full@example.com: 452 Mailbox full\n")

    def test_the_sender(self, run: Run, server: Server) -> None:
        result = run("send", *TO, *at(server), "--mail-parameter", "NONSENSE=1")
        assert result.exit_code == 69
        assert result.stdout.startswith("refused: ann@example.com: 555")

    def test_too_large(self, run: Run, serving: Serving) -> None:
        with serving(size=2000, hide_size=True) as server:
            assert run("send", *TO, *at(server), "--size", "10k").exit_code == 69

    def test_what_is_no_reply_is_no_yes(self, run: Run, saying: Callable[[bytes], int]) -> None:
        port = saying(b"220 x\r\n250 x\r\nwhat?\r\n250 ok\r\n354 go on\r\n250 ok\r\n")
        result = run("send", *TO, "--server", f"{HOST}:{port}")
        assert (result.exit_code, result.stdout[:8]) == (76, "refused:")

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset takes with it what was not read")
    @pytest.mark.parametrize(
        ("early", "status", "shown"),
        [
            (b"552 too large\r\n", 69, "refused: ann@example.com: 552 too large"),
            (b"250 have it\r\n", 76, "says 250 have it, and has not read all of the message"),
            (b"", 75, "broke the connection off"),
        ],
    )
    def test_an_answer_before_the_end(self, run: Run, early: bytes, status: int, shown: str) -> None:
        def serve(listening: socket.socket) -> None:
            with listening.accept()[0] as client:
                client.settimeout(20)
                client.sendall(b"220 x\r\n250 x\r\n250 ok\r\n250 ok\r\n354 go on\r\n")
                while b"Subject" not in client.recv(65536):
                    pass
                client.sendall(early)

        with socket.create_server((HOST, 0)) as listening:
            serving = threading.Thread(target=serve, args=(listening,), daemon=True)
            serving.start()
            result = run("send", *TO, "--size", "30M", "--server", f"{HOST}:{listening.getsockname()[1]}")
            serving.join(20)
        assert (result.exit_code, shown in result.output) == (status, True), result.output[-300:]

    def test_nothing_listens(self, run: Run, closed_port: int) -> None:
        result = run("send", *TO, "--server", f"{HOST}:{closed_port}")
        assert result.exit_code == 68
        assert (
            f"Error: cannot connect to {HOST}:{closed_port}: connection refused: nothing listens there" in result.stderr
        )

    def test_no_such_socket(self, run: Run, tmp_path: Path) -> None:
        result = run("send", *TO, "--server", f"unix:{tmp_path}/none")
        assert result.exit_code == 68
        assert "no such file or directory" in result.stderr

    @pytest.mark.parametrize(
        ("octets", "status", "message"),
        [
            (b"421 come back\r\n", 75, "refused: 421 come back"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", 76, "does not speak SMTP"),
            (b"", 76, "sent no greeting (Connection unexpectedly closed); if it waits for TLS, write smtps://"),
            (b"220 hello\r\n250 you\r\n250 Accepted\r\n", 75, "broke the connection off"),
            (b"220 hello\r\n" + b"x" * 9000 + b"\r\n", 76, "does not speak SMTP"),
            (b"220 hello\r\n554 no\r\n554 no\r\n", 69, "refused: 554 no"),
            (b"220-hello\r\n" * 10_000, 76, "the reply does not end"),
            (b"220 x\r\n250 x\r\n250 ok\r\n250 ok\r\n250 sure\r\n", 76, "it says 250 sure to DATA"),
        ],
    )
    def test_a_strange_server(
        self, run: Run, saying: Callable[[bytes], int], octets: bytes, status: int, message: str
    ) -> None:
        result = run("send", *TO, "--server", f"{HOST}:{saying(octets)}")
        assert (result.exit_code, message in result.stderr) == (status, True), result.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Missing option '--to'"),
            ([*TO, "--server", "http://x"], "unknown scheme 'http'"),
            ([*TO, "--subject", "x", "-"], "make a message up: leave FILE out"),
            ([*TO, "none.eml"], "none.eml: cannot be read: no such file or directory"),
            ([*TO, "smtp://localhost:25"], "a server is given as --server smtp://localhost:25"),
            ([*TO, "--attach", "none.png"], "--attach none.png: cannot be read"),
            ([*TO, "--header", "x"], "write 'Name: value'"),
            ([*TO, "--header", "X: a\nBcc: b"], "write 'Name: value'"),
            ([*TO, "--header", "Content-Type: text/html"], "what is made up says that itself"),
            (["--to", "b\udce9n@example.com"], "is no address"),
            (["--to", "<ann@example.com>"], "is no address: write joe@example.com"),
            (["--to", "a@b\r\nRCPT TO:<c@d>"], "is no address"),
            ([*TO, "--mail-parameter", "A\r\nB"], "is no parameter"),
            ([*TO, "--tls", "maybe"], "'maybe' is not one of"),
            ([*TO, "--sever", "x"], "--server"),
        ],
    )
    def test_wrong_arguments(self, run: Run, arguments: list[str], message: str) -> None:
        result = run("send", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


# --- Other people's servers


@contextmanager
def sink(folder: Path, *arguments: str) -> Iterator[str]:
    """Run Postfix's smtp-sink on a Unix socket, and yield that."""
    path = folder / "sink"
    command = [program("smtp-sink", "postfix"), *arguments, f"unix:{path}", "10"]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            deadline = time.monotonic() + 10
            while not _answers(path):
                assert time.monotonic() < deadline
            yield str(path)
        finally:
            process.kill()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def test_smtp_sink_gets_what_was_sent(run: Run, short_folder: Path) -> None:
    (short_folder / "message").write_bytes(TRICKY)
    (short_folder / "got").mkdir(mode=0o777)
    with sink(short_folder, "-u", "root", "-d", "got/%M.") as path:
        assert run("send", *TO, "--server", f"unix:{path}", short_folder / "message").exit_code == 0
    [got] = (short_folder / "got").iterdir()
    assert TRICKY.replace(b"\r\n", b"\n").partition(b"\n\n")[2] in got.read_bytes().replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("refusal", "status"), [(("-r", "data"), 75), (("-f", "data"), 69), (("-r", "."), 75), (("-f", "rcpt"), 69)]
)
def test_smtp_sink_refuses(run: Run, short_folder: Path, refusal: tuple[str, ...], status: int) -> None:
    with sink(short_folder, "-u", "root", *refusal) as path:
        assert run("send", *TO, "--server", f"unix:{path}").exit_code == status


def test_smtp_sink_speaks_lmtp(run: Run, short_folder: Path) -> None:
    with sink(short_folder, "-u", "root", "-L") as path:
        result = run("send", *TO, "--to", "bob@example.com", "--server", f"lmtp+unix:{path}")
    assert (result.exit_code, result.stdout.count("accepted:")) == (0, 2)


def test_postfix_takes_it(run: Run, short_folder: Path) -> None:
    (short_folder / "message").write_bytes(TRICKY)
    with Postfix(default_transport="discard", relay_transport="discard") as postfix:
        path = postfix.path
        result = run("send", "--from", "bob@example.org", *TO, "--server", f"unix:{path}", short_folder / "message")
        assert result.exit_code == 0, result.output
        assert "250 2.0.0 Ok: queued as" in result.stdout
        postfix.log.find("to=<ann@example.com>.*status=sent")
        refused = run("send", "--from", "bob", *TO, "--server", f"unix:{path}", "--mail-parameter", "SIZE=999999999999")
        assert refused.exit_code in (69, 75)


def test_dovecot_takes_it_by_lmtp(run: Run) -> None:
    with dovecot() as server:
        to = ("--to", "ann", "--to", "no one@example.com", "--to", "bob")
        result = run("send", *to, "--from", "bob@example.org", "--server", f"lmtp://{HOST}:{server.lmtp}")
        assert result.exit_code == 69, result.output
        first, second, third = result.stdout.splitlines()
        assert first.startswith("accepted: ann: 250 2.0.0 <ann> ")
        assert second.startswith("refused: no one@example.com: 501 5.5.4")
        assert third.startswith("accepted: bob: 250 2.0.0 <bob> ")
        probed = run("probe", f"lmtp://{HOST}:{server.lmtp}")
        assert "Dovecot" in probed.stdout
        assert "8BITMIME, CHUNKING" in probed.stdout


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for a Unix socket, whose path must be short."""
    import tempfile

    if sys.platform == "win32":
        missing("there are no Unix sockets")
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        yield Path(folder)


def _until(terminal: int, text: bytes) -> bytes:
    said = b""
    while text not in said:
        block = os.read(terminal, 4096)
        assert block, said
        said += block
    return said
