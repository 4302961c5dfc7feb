"""``pillarbox check``: what it explains, what it warns of, how it ends, and that it touches nothing."""

from __future__ import annotations

import datetime
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme
from pydantic import SecretStr

from cli.conftest import Run
from cli.test_probe import DAY, NOW, self_signed
from cli.test_schema import FILES
from pillarbox import deliver

Write = Callable[[str], Path]

# All that a public address wants: what is left over in a test is what it is about.
USERS = "[[users]]\nurl = 'htpasswd:users'"
JWT = "[[users]]\nissuer = 'https://id.example.com'\naudience = 'mail'"
GOOD = """
[server]
name = "mx.example.com"
size = 10_000_000
max_clients_per_address = 20
key = "mx.key"
cert = "mx.pem"
[[listen]]
address = ":25"
[access]
accept = ["*@example.com", "postmaster@mx.example.com"]
[[deliver]]
url = "maildir:mail"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a key and a certificate for mx.example.com."""
    issued = trustme.CA().issue_cert("mx.example.com")
    (tmp_path / "mx.key").touch(mode=0o600)
    issued.private_key_pem.write_to_path(tmp_path / "mx.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "mx.pem")
    (tmp_path / "users").touch(mode=0o600)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "mail.toml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return written


def found(run: Run, *arguments: str | Path) -> dict[str, Any]:
    result = run("check", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def codes(run: Run, *arguments: str | Path) -> list[str]:
    return [warning["code"] for warning in found(run, *arguments)["warnings"]]


def values(listed: list[dict[str, Any]]) -> dict[str, tuple[Any, str]]:
    return {each["name"]: (each["value"], each["source"]) for each in listed}


class TestWhatItExplains:
    def test_where_each_value_stands(self, run: Run, write: Write) -> None:
        file = write("[server]\nsize = 5\nbanner = 'file'\nmax_errors = 10\n[program]\nlog_level = 'debug'")
        report = found(run, file, "--set", "banner=cli", "--set", "lmtp=true")
        assert values(report["options"]) == {
            "size": (5, f"{file}, [server]"),
            "banner": ("cli", "--set banner"),
            "lmtp": (True, "--set lmtp"),
            "auth_optional": (True, "the program's default"),
        }
        assert values(report["program"]) == {"log_level": ("debug", f"{file}, [program]")}
        assert values(found(run, file, "--log-level", "error")["program"]) == {"log_level": ("error", "--log-level")}

    def test_listeners(self, run: Run, write: Write) -> None:
        file = write(
            "[server]\nsize = 5\n[[listen]]\naddress = '127.0.0.1:25'\n[[listen]]\naddress = ':465'\nsecure = true\n"
            "auth_optional = false\nauth_methods = ['PLAIN']\n[[listen]]\naddress = 'unix:lmtp'\nlmtp = true\n"
            "disabled_commands = ['AUTH', 'STARTTLS']\n[[users]]\nurl = 'htpasswd:users'\n"
        )
        first, second, third = found(run, file)["listeners"]
        assert (first["address"], first["protocol"], first["tls"], first["options"]) == (
            "127.0.0.1:25", "SMTP", "STARTTLS", [],
        )  # fmt: skip
        assert (first["reached_from"], second["reached_from"], third["reached_from"]) == (
            "this host", "other hosts", "this host",
        )  # fmt: skip
        assert (second["tls"], second["login"]) == ("implicit TLS", "AUTH PLAIN, required")
        assert values(second["options"])["secure"] == (True, f"{file}, [[listen]] 2")
        assert (third["protocol"], third["tls"], third["login"]) == ("LMTP", "no TLS", "no AUTH")
        assert found(run)["listeners"][0]["source"] == "the program's default"
        assert found(run, "--listen", ":2525")["listeners"][0]["source"] == "--listen"

    def test_access_in_words(self, run: Run, write: Write) -> None:
        file = write(
            "[access]\naccept = ['*@example.com']\nnetworks = ['10.0.0.0/8']\n[access.senders]\n"
            "joe = ['joe@example.com']\n'*' = ['{user}@example.com']\n"
            "[[listen]]\naddress = '127.0.0.1:25'\n[[listen]]\naddress = '127.0.0.1:587'\nauth_optional = false\n"
            "[[users]]\nurl = 'htpasswd:users'"
        )
        first, second = (listener["access"] for listener in found(run, file)["listeners"])
        assert first == [
            "anyone may write to *@example.com",
            "who has logged in may write to anyone",
            "clients in 10.0.0.0/8 may write to anyone",
            "joe may write as joe@example.com",
            "every other user may write as {user}@example.com",
        ]
        assert second[0] == "who has logged in may write to anyone, nobody else to anybody"
        assert found(run)["listeners"][0]["access"] == ["anyone may write to anyone"]

    def test_targets(self, run: Run, write: Write) -> None:
        file = write(
            "[[listen]]\naddress = '127.0.0.1:25'\n[[deliver]]\nurl = 'maildir:mail'\nrecipients = ['*@example.com']\n"
            "[[deliver]]\nurl = 'discard:'\noptional = true\nlisteners = ['127.0.0.1:25']\n"
        )
        first, second = found(run, file)["targets"]
        assert (first["url"], first["recipients"], first["optional"]) == ("maildir:mail", ["*@example.com"], False)
        assert (second["optional"], second["listeners"]) == (True, ["127.0.0.1:25"])
        assert (first["timeout"], second["timeout"]) == (300, 60)
        assert second["source"] == f"{file}, [[deliver]] 2"

    def test_for_a_person(self, run: Run, write: Write) -> None:
        file = write(GOOD)
        result = run("check", "--strict", file, "--set", "banner=hello")
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert f"  :25: SMTP, STARTTLS, no AUTH  ({file}, [[listen]] 1)" in lines
        assert "      anyone may write to *@example.com, postmaster@mx.example.com" in lines
        assert any(line.startswith('  banner = "hello" ') and line.endswith("(--set banner)") for line in lines)
        assert lines[-1] == "No warnings."

    @pytest.mark.parametrize("text", FILES)
    def test_every_file_of_the_documentation(self, run: Run, write: Write, text: str) -> None:
        result = run("check", write(text))
        # Keys, certificates and modules that are not here.
        missing = ("cannot read", "cannot be read", "there is no module")
        assert result.exit_code == 0 or any(text in result.stderr for text in missing), result.output


class TestSecrets:
    def test_none_is_shown(self, run: Run, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Own(deliver.Target):
            class Settings(deliver.Settings):
                token: SecretStr = SecretStr("")

            async def deliver(self, message: deliver.Message) -> str:
                raise NotImplementedError

        monkeypatch.setitem(deliver._SCHEMES.built_in, "own", (__name__, "Own"))
        monkeypatch.setitem(globals(), "Own", Own)
        pem = (folder / "mx.key").read_text()
        file = write(
            f"[server]\nkey = '''{pem}'''\ncert = 'mx.pem'\nrate_store = 'redis://joe:s3cret@localhost/1'\n"
            "[server.sni_options.'mx.example.com']\nkey = 'mx.key'\ncert = 'mx.pem'\n"
            "[[deliver]]\nurl = 'own:'\ntoken = 's3cret'"
        )
        for form in ([], ["--json"]):
            result = run("check", *form, file)
            assert result.exit_code == 0, result.output
            assert not {"s3cret", pem.splitlines()[1]} & set(result.output.replace('"', " ").split())
            assert "s3cret" not in result.output
            assert "BEGIN" not in result.output
        assert values(found(run, file)["options"])["rate_store"][0] == "redis://localhost/1"
        assert values(found(run, file)["options"])["key"][0] == ["PEM text"]
        file.chmod(0o644)
        assert "readable-by-all" in codes(run, file)


class TestWarnings:
    def test_none_for_a_good_file_and_none_for_no_file(self, run: Run, write: Write) -> None:
        assert codes(run, write(GOOD)) == []
        assert codes(run) == []

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (["use_xclient=true"], "open-xclient"),
            (["use_xclient=['0.0.0.0/0']"], "open-xclient"),
            (["use_xforward=['*']"], "open-xforward"),
            (["use_proxy=true"], "open-proxy"),
            (["allow_insecure_auth=true"], "plaintext-auth"),
            (["disabled_commands=['STARTTLS']"], "plaintext-auth"),
            (["hide_starttls=true"], "plaintext-auth"),
        ],
    )
    def test_what_is_open(self, run: Run, write: Write, settings: list[str], expected: str) -> None:
        file = write(GOOD)
        given = [each for setting in settings for each in ("--set", setting)]
        given += ["--users", "htpasswd:users"]
        assert codes(run, file, *given) == [expected]
        assert codes(run, file, *given, "--listen", "127.0.0.1:25") == []
        assert run("check", "--strict", file, *given).exit_code == 1

    def test_behind_a_proxy_on_this_host_are_strangers(self, run: Run, write: Write) -> None:
        file = write(GOOD.replace('"*@example.com"', '"*"'))
        assert codes(run, file, "--listen", "127.0.0.1:25") == []
        assert codes(run, file, "--listen", "127.0.0.1:25", "--set", "use_proxy=true") == ["accepts-everything"]

    @pytest.mark.parametrize(
        ("settings", "users"),
        [
            (["use_xclient=['192.0.2.1']", "use_xforward=false", "use_proxy=['10.0.0.0/8']"], ["htpasswd:users"]),
            (["allow_insecure_auth=true", "disabled_commands=['AUTH']"], []),
            (["allow_insecure_auth=true", "secure=true"], ["htpasswd:users"]),
            (["auth_optional=false"], ["htpasswd:users"]),
        ],
    )
    def test_what_is_not(self, run: Run, write: Write, settings: list[str], users: list[str]) -> None:
        given = [each for setting in settings for each in ("--set", setting)]
        given += [each for url in users for each in ("--users", url)]
        assert codes(run, write(GOOD), *given) == []

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("size = 10_000_000\n", ["no-size"]),
            ("max_clients_per_address = 20\n", ["no-limits"]),
            ('key = "mx.key"\ncert = "mx.pem"\n', ["no-certificate"]),
            ('accept = ["*@example.com", "postmaster@mx.example.com"]\n', ["accepts-everything"]),
            (', "postmaster@mx.example.com"', []),
        ],
    )
    def test_what_is_missing(self, run: Run, write: Write, line: str, expected: list[str]) -> None:
        assert line in GOOD
        assert codes(run, write(GOOD.replace(line, ""))) == expected

    @pytest.mark.parametrize(
        ("accept", "refused"),
        [
            (["*@example.com", "!postmaster@example.com", "postmaster@mx.example.com"], ["postmaster@example.com"]),
            (["joe@example.org"], []),
            (["*@*.example.com"], []),
            (["file:own"], ["postmaster@example.net", "postmaster@mx.example.com"]),
            ([], []),
        ],
    )
    def test_postmaster(self, run: Run, write: Write, folder: Path, accept: list[str], refused: list[str]) -> None:
        (folder / "own").write_text("joe@example.net\n!postmaster@*\n")
        file = write(GOOD.replace('["*@example.com", "postmaster@mx.example.com"]', json.dumps(accept)))
        warnings = found(run, file)["warnings"]
        assert [warning["text"].split()[0] for warning in warnings] == refused
        assert {warning["code"] for warning in warnings} <= {"no-postmaster"}

    def test_postmaster_whom_no_target_takes(self, run: Run, write: Write) -> None:
        file = write(f"{GOOD}\nrecipients = ['joe@example.com', '!postmaster@*']")
        assert codes(run, file) == ["no-postmaster", "no-postmaster"]

    def test_one_for_all_listeners(self, run: Run) -> None:
        report = found(run, "--listen", ":25", "--listen", ":587")
        assert [warning["where"] for warning in report["warnings"]] == [[":25", ":587"]] * 4

    @pytest.mark.parametrize(
        ("begin", "end", "names", "expected"),
        [
            (-9, -1, ["mx.example.com"], ["certificate-expired"]),
            (-9, 5, ["mx.example.com"], ["certificate-expires-soon"]),
            (1, 90, ["mx.example.com"], ["certificate-not-yet-valid"]),
            (-9, 90, ["mx.example.org"], ["certificate-wrong-name"]),
            (-9, 90, ["*.example.com"], []),
        ],
    )
    def test_certificates(
        self, run: Run, write: Write, folder: Path, begin: int, end: int, names: list[str], expected: list[str]
    ) -> None:
        pems = self_signed(*names, begin=NOW + begin * DAY, end=NOW + end * DAY)
        (folder / "mx.key").write_bytes(pems["key"])
        (folder / "mx.pem").write_bytes(pems["cert"])
        warnings = found(run, write(GOOD))["warnings"]
        assert [warning["code"] for warning in warnings] == expected
        assert all(warning["text"].startswith(f"{folder}/mx.pem: the certificate ") for warning in warnings)

    def test_a_certificate_for_a_server_name(self, run: Run, write: Write, folder: Path) -> None:
        own = "\n[server.sni_options.'mx.example.org']\nkey = 'mx.key'\ncert = 'mx.pem'\n"
        [warning] = found(run, write(GOOD + own))["warnings"]
        assert warning["code"] == "certificate-wrong-name"
        assert "is not for mx.example.org, but for mx.example.com" in warning["text"]

    @pytest.mark.parametrize(
        ("line", "secret"),
        [
            ("[server]\nrate_store = 'redis://:geheim@localhost/0'", True),
            ("[[deliver]]\nurl = 'smtp://joe:geheim@mx.example.com'", True),
            ("[[deliver]]\nurl = 'https://joe:geheim@example.com/in'", True),
            ("[program]\ntraces = 'http://joe:geheim@127.0.0.1:4318'", True),
            ("[[deliver]]\nurl = 'smtp://joe@mx.example.com:25'\npassword_file = 'users'", False),
            ("[[deliver]]\nurl = 'smtp://[::1]:2525'\nrecipients = ['joe@example.com']", False),
        ],
    )
    def test_a_password_in_a_url_that_everybody_may_read(self, run: Run, write: Write, line: str, secret: bool) -> None:
        file = write(f"{line}\n")
        file.chmod(0o644)
        assert ("readable-by-all" in codes(run, file)) is secret

    def test_a_key_that_everybody_may_read(self, run: Run, write: Write, folder: Path) -> None:
        (folder / "mx.key").chmod(0o644)
        [warning] = found(run, write(GOOD))["warnings"]
        assert (warning["code"], warning["where"]) == ("readable-by-all", [f"{folder}/mx.key"])
        assert f"chmod o= {folder}/mx.key" in warning["text"]
        (folder / "mx.key").chmod(0o640)
        assert codes(run, write(GOOD)) == []

    @pytest.mark.parametrize(
        ("lines", "text"),
        [
            ("networks = ['10.0.0.0/8']\n[server2]\nauth_optional = false\n", "have to log in too"),
            ("networks = ['10.0.0.0/8']\n[server2]\nauth_optional = true\n", "may write to anyone, as no accept"),
            ("networks = ['10.0.0.0/8']\n", None),
            ("networks = ['10.0.0.0/8']\naccept = ['*@example.com']\n", None),
            ("senders = {joe = ['joe@example.com']}\n[server2]\ndisabled_commands = ['AUTH']\n", "nobody can"),
            ("senders = {joe = ['joe@example.com']}\n", None),
            ("[server2]\ndisabled_commands = ['AUTH']\n", "users change nothing: AUTH is disabled"),
            ("[server2]\n[[deliver]]\nurl = 'discard:'\nrecipients = []\n", "this target gets no message: its"),
            ("[server2]\n[[deliver]]\nurl = 'discard:'\nrecipients = ['file:nobody']\n", "this target gets no message"),
            ("[server2]\n[[deliver]]\nurl = 'discard:'\nrecipients = ['!joe@example.com']\n", None),
        ],
    )
    def test_rules_for_nothing(self, run: Run, write: Write, folder: Path, lines: str, text: str | None) -> None:
        rules, _, server = lines.partition("[server2]\n")
        (folder / "nobody").write_text("# nobody yet\n")
        file = write(f"[server]\n{server}[access]\n{rules}[[users]]\nurl = 'htpasswd:users'\n")
        warnings = [each for each in found(run, file)["warnings"] if each["code"] == "no-effect"]
        if text is None:
            assert warnings == []
        else:
            assert any(text in each["text"] for each in warnings)

    @pytest.mark.parametrize(
        ("line", "code", "text"),
        [
            ("[program]\nuser = 'no-such-user'", "no-user", "there is no user 'no-such-user'"),
            ("[program]\nuser = 'root:4294967295'", "no-user", "there is no group '4294967295'"),
            ("[[users]]\nurl = 'htpasswd:nowhere'", "users-file", "there is no such file: make it with"),
            ("[[users]]\nurl = 'htpasswd:wrong'", "users-file", "line 1: user joe: it has no hash"),
            ("[[users]]\nurl = 'htpasswd:.'", "users-file", "is a directory"),
            ("[[users]]\nurl = 'dovecot:nowhere'", "users-file", "there is no such socket"),
            ("[[users]]\nurl = 'dovecot:wrong'", "users-file", "there is no such socket"),
            (f"{JWT}\nurl = 'jwt:nowhere'", "users-file", "serve would not start here: there is no such file"),
            (f"{JWT}\nurl = 'jwt:wrong'", "users-file", "it is no json"),
        ],
    )
    def test_what_would_stop_serve(self, run: Run, write: Write, folder: Path, line: str, code: str, text: str) -> None:
        (folder / "wrong").write_text("joe:geheim\n")
        (folder / "wrong").chmod(0o600)
        result = found(run, write(f"{line}\n"))
        assert [each["code"] for each in result["warnings"]] == [code]
        assert text in result["warnings"][0]["text"]
        assert "geheim" not in json.dumps(result)

    @pytest.mark.parametrize(
        ("line", "module", "extra"),
        [
            ("[[deliver]]\nurl = 'smtp://127.0.0.1'", "aiosmtplib", "smtp"),
            ("[[users]]\nurl = 'http://127.0.0.1/'", "aiohttp", "http"),
            ("[[users]]\nurl = 'jwt:keys'\nissuer = 'a'\naudience = 'b'", "jwt", "jwt"),
            ("[program]\nmetrics = '127.0.0.1:0'", "prometheus_client", "metrics"),
            ("[program]\ntraces = 'http://127.0.0.1'", "opentelemetry", "traces"),
        ],
    )
    def test_an_extra_that_is_missing(
        self, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, line: str, module: str, extra: str
    ) -> None:
        file = write(f"{line}\n")
        assert not [each for each in found(run, file)["warnings"] if each["code"] == "no-library"]
        monkeypatch.setitem(sys.modules, module, None)
        (warning,) = [each for each in found(run, file)["warnings"] if each["code"] == "no-library"]
        assert f"needs {module}: pip install 'pillarbox[{extra}]'" in warning["text"]

    def test_a_password_for_the_collector_does_not_show(self, run: Run, write: Write) -> None:
        file = write("[program]\ntraces = 'http://u:geheim@127.0.0.1:4318'\n")
        assert "geheim" not in run("check", file).output
        assert values(found(run, file)["program"])["traces"][0] == "http://127.0.0.1:4318"


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[server]\nsise = 1", "[server]: unknown option 'sise': did you mean 'size'?"),
            ("[server]\nkey = 'mx.key'\ncert = 'other.pem'", "[server]: option cert: cannot read"),
            ("[server]\nkey = 'other.key'\ncert = 'mx.pem'", "does not belong to the certificate"),
            ("[[listen]]\naddress = ':25'\nkey = 'none'\ncert = 'mx.pem'", "[[listen]] 1: option key: cannot read"),
            ("[[listen]]\naddress = '25'", "[[listen]] 1: '25' is no address"),
            ("[[deliver]]\nurl = 'maildr:x'", "did you mean 'maildir'?"),
            (
                f"[server]\nauth_methods = ['XOAUTH2']\n{USERS}",
                "none of the users can log in by XOAUTH2",
            ),
            (f"[[listen]]\naddress = ':0'\nauth_methods = ['EXTERNAL', 'LOGIN']\n{USERS}", "log in by EXTERNAL (auth_"),
        ],
    )
    def test_one_message_and_status_2(self, run: Run, write: Write, folder: Path, text: str, message: str) -> None:
        trustme.CA().issue_cert("x").private_key_pem.write_to_path(folder / "other.key")
        file = write(text)
        result = run("check", file)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.startswith(f"Error: {file}, ")
        as_json = run("check", "--json", file)
        assert as_json.exit_code == 2
        assert message in json.loads(as_json.stdout)["error"]

    def test_an_open_relay(self, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        class Relay(deliver.Target):
            relays: ClassVar[bool] = True

            async def deliver(self, message: deliver.Message) -> str:
                raise NotImplementedError

        monkeypatch.setitem(deliver._SCHEMES.built_in, "relay", (__name__, "Relay"))
        monkeypatch.setitem(globals(), "Relay", Relay)
        text = "[[listen]]\naddress = ':25'\n[[deliver]]\nurl = 'relay:'\n"
        result = run("check", write(text))
        assert result.exit_code == 2
        assert "would be an open relay" in result.stderr
        assert run("check", write(f"[access]\naccept = ['*@example.com']\n{text}")).exit_code == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none.toml"], "none.toml: cannot be read: no such file or directory"),
            (["--set", "size"], "write --set NAME=VALUE"),
            (["a.toml", "--config", "b.toml"], "FILE and --config are the same"),
            (["--sett", "x=1"], "--set"),
        ],
    )
    def test_wrong_arguments(self, run: Run, arguments: list[str], message: str) -> None:
        result = run("check", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_it_takes_the_arguments_of_serve(run: Run, write: Write) -> None:
    file = write("")
    report = found(
        run, "--config", file, "--listen", "127.0.0.1:1", "--deliver", "discard:", "--accept", "*@example.com"
    )
    assert [listener["address"] for listener in report["listeners"]] == ["127.0.0.1:1"]
    assert report["listeners"][0]["access"][0] == "anyone may write to *@example.com"
    assert [target["url"] for target in report["targets"]] == ["discard:"]


@pytest.fixture
def nothing_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(*_: object) -> None:
        raise AssertionError("a socket was bound")

    monkeypatch.setattr(socket.socket, "bind", bind)


@pytest.mark.usefixtures("nothing_bound")
def test_it_touches_nothing(run: Run, write: Write, folder: Path) -> None:
    file = write(GOOD + "[[deliver]]\nurl = 'maildir:other'\n")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    listeners = ("--listen", "127.0.0.1:1", "--listen", "unix:socket", "--listen", "fd:77")
    assert run("check", file, *listeners).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_clock_is_the_certificates(folder: Path) -> None:
    from pillarbox.cli.certificates import Certificate

    certificate = Certificate.from_pem((folder / "mx.pem").read_bytes())
    later = certificate.not_after + datetime.timedelta(seconds=1)
    assert [code for code, _ in certificate.flaws("mx.example.com", later)] == ["certificate-expired"]
