"""The effective configuration: who beats whom, and one error that names the place."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pillarbox import ConfigurationError
from pillarbox.cli.addresses import address_text, listen_arguments
from pillarbox.cli.config import effective, toml_value


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str | bytes) -> str:
        path = tmp_path / "mail.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return written


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "arguments"),
        [
            ("127.0.0.1:2525", {"host": "127.0.0.1", "port": 2525}),
            ("mail.example.com:25", {"host": "mail.example.com", "port": 25}),
            ("[::1]:2525", {"host": "::1", "port": 2525}),
            ("[fe80::1%eth0]:25", {"host": "fe80::1%eth0", "port": 25}),
            (":0", {"host": None, "port": 0}),
            ("unix:/run/x.sock", {"path": "/run/x.sock"}),
            ("unix:a:b", {"path": "a:b"}),
            ("fd:3", {"fd": 3}),
            ("fd:smtp", {"fd": "smtp"}),
        ],
    )
    def test_understood(self, address: str, arguments: dict[str, Any]) -> None:
        assert listen_arguments(address) == arguments

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("2525", "'2525' is no address: write host:port"),
            ("", "is no address"),
            ("localhost", "is no address"),
            ("::1:25", r"put an IPv6 address in brackets, for example \[::1\]:2525"),
            ("host:", "'' is no port from 0 to 65535"),
            ("host:smtp", "'smtp' is no port"),
            ("host:65536", "'65536' is no port"),
            ("host:-1", "'-1' is no port"),
            ("host:２５", "is no port"),
            ("[::1:25", "brackets"),
            ("a b:25", "is no host"),
            ("smtp://host:25", "brackets|is no host"),
            ("unix:", "names no socket"),
            ("fd:", "is no descriptor"),
            ("fd:a b", "is no descriptor"),
        ],
    )
    def test_refused(self, address: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            listen_arguments(address)

    @pytest.mark.parametrize(
        ("bound", "text"),
        [(("127.0.0.1", 25), "127.0.0.1:25"), (("::1", 25), "[::1]:25"), ("/run/x", "unix:/run/x")],
    )
    def test_spelt(self, bound: tuple[str, int] | str, text: str) -> None:
        assert address_text(bound) == text


class TestValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("5", 5),
            ("1_000", 1000),
            ("0.5", 0.5),
            ("true", True),
            ('"true"', "true"),
            ("'x'", "x"),
            ('["PLAIN", "LOGIN"]', ["PLAIN", "LOGIN"]),
            ("[]", []),
            ('{a = {key = "k"}}', {"a": {"key": "k"}}),
            ("2026-01-02", datetime.date(2026, 1, 2)),
            ("", ""),
            ("mail.example.com", "mail.example.com"),
            ("%s at your service", "%s at your service"),
            ("True", "True"),
            ("None", "None"),
            ("12#34", "12#34"),
            ("5 # five", "5 # five"),
            ("1,", "1,"),
            ("1, 2", "1, 2"),
            ("1\nother = 2", "1\nother = 2"),
            ("-----BEGIN X-----\nabc\n", "-----BEGIN X-----\nabc\n"),
        ],
    )
    def test_toml_or_else_a_string(self, text: str, value: Any) -> None:
        assert toml_value(text) == value
        assert type(toml_value(text)) is type(value)


class TestDefaults:
    def test_no_arguments(self) -> None:
        found = effective()
        assert [listener.address for listener in found.listeners] == ["127.0.0.1:2525"]
        assert [each.target.url for each in found.routes] == ["maildir:./Maildir"]
        assert found.options.auth_optional is True

    def test_an_empty_file_changes_nothing(self, write: Any) -> None:
        found = effective(write(""))
        assert [(each.address, each.options) for each in found.listeners] == [
            (each.address, each.options) for each in effective().listeners
        ]
        assert found.options.auth_optional is True

    def test_auth_optional_whatever_the_other_arguments(self, write: Any) -> None:
        file = write("[server]\nsize = 5\n[[listen]]\naddress = ':0'\nsecure = true")
        found = effective(file, settings=["lmtp=true"], deliver=["discard:"])
        assert found.options.auth_optional is True
        assert found.listeners[0].options.auth_optional is True

    def test_auth_optional_can_be_set(self, write: Any) -> None:
        file = write("[server]\nauth_optional = false\n[[users]]\nurl = 'htpasswd:users'")
        assert effective(file).options.auth_optional is False
        assert effective(file, settings=["auth_optional=true"]).options.auth_optional is True

    def test_auth_optional_by_listener(self, write: Any) -> None:
        listen = "[[listen]]\naddress = ':25'\n[[listen]]\naddress = ':587'\nauth_optional = "
        found = effective(
            write(f"{listen}false\n[[users]]\nurl = 'htpasswd:users'\n[access]\naccept = ['*@example.com']")
        )
        assert [listener.options.auth_optional for listener in found.listeners] == [True, False]
        assert [listener.overrides for listener in found.listeners] == [
            {"auth_optional": True},
            {"auth_optional": False},
        ]


class TestPrecedence:
    FILE = """
        [server]
        size = 1000
        banner = "file"
        [[listen]]
        address = "127.0.0.1:0"
        banner = "listener"
        [[listen]]
        address = "unix:/run/x"
        lmtp = true
        [[deliver]]
        url = "discard:"
        [[deliver]]
        url = "maildir:/var/mail/in"
    """

    def test_the_file(self, write: Any) -> None:
        found = effective(write(self.FILE))
        assert (found.options.size, found.options.banner, found.options.lmtp) == (1000, "file", False)
        first, second = found.listeners
        assert (first.options.banner, first.options.lmtp, first.options.size) == ("listener", False, 1000)
        assert (second.options.banner, second.options.lmtp) == ("file", True)
        assert second.arguments == {"path": "/run/x"}
        assert [each.target.url for each in found.routes] == ["discard:", "maildir:/var/mail/in"]

    def test_set_beats_server_but_not_the_listener(self, write: Any) -> None:
        found = effective(write(self.FILE), settings=["size=5", "banner=cli", "size=6"])
        assert (found.options.size, found.options.banner) == (6, "cli")
        assert [listener.options.banner for listener in found.listeners] == ["listener", "cli"]

    def test_listen_replaces_the_files_listeners(self, write: Any) -> None:
        found = effective(write(self.FILE), listen=["127.0.0.1:1", "127.0.0.1:2"])
        assert [listener.address for listener in found.listeners] == ["127.0.0.1:1", "127.0.0.1:2"]
        assert [listener.overrides.get("banner") for listener in found.listeners] == [None, None]
        assert len(found.routes) == 2

    def test_deliver_replaces_the_files_targets(self, write: Any) -> None:
        found = effective(write(self.FILE), deliver=["discard:"])
        assert [each.target.url for each in found.routes] == ["discard:"]
        assert len(found.listeners) == 2

    def test_file_and_set_complete_each_other(self, write: Any) -> None:
        found = effective(write("[server]\nneeds_upgrade = true"), settings=["secure=true"])
        assert found.options.secure


class TestPaths:
    def test_begin_at_the_file(self, write: Any, tmp_path: Path) -> None:
        found = effective(
            write("""
                [server]
                key = ["a.key", "/abs/b.key"]
                cert = ["../a.pem", "/abs/b.pem"]
                ca = "ca.pem"
                [server.sni_options."example.com"]
                key = "sni.key"
                cert = "sni.pem"
                [[listen]]
                address = ":25"
                ca = "other.pem"
            """)
        )
        options = found.options
        assert options.key == (f"{tmp_path}/a.key", "/abs/b.key")
        assert options.cert == (f"{tmp_path}/../a.pem", "/abs/b.pem")
        assert options.ca == f"{tmp_path}/ca.pem"
        assert options.sni_options == {"example.com": {"key": f"{tmp_path}/sni.key", "cert": f"{tmp_path}/sni.pem"}}
        assert found.listeners[0].options.ca == f"{tmp_path}/other.pem"

    def test_pem_text_is_no_path(self, write: Any) -> None:
        pem = "-----BEGIN CERTIFICATE-----\\nabc\\n-----END CERTIFICATE-----\\n"
        assert effective(write(f'[server]\nca = "{pem}"')).options.ca == pem.replace("\\n", "\n")

    def test_of_the_command_line_stay(self) -> None:
        assert effective(settings=["ca=ca.pem"]).options.ca == "ca.pem"


class TestFileErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[server", r"mail.toml: is not TOML: Expected ']' .* \(at line 1, the last one\)"),
            ("a = 1\nb 2", r"mail.toml: is not TOML: .*line 2"),
            (b"[server]\nbanner = '\xff'", r"mail.toml: is not UTF-8 \(at line 2\)"),
            ("[sever]\nsize = 1", r"mail.toml: unknown table or key 'sever': did you mean 'server'\?"),
            ("size = 1", r"mail.toml: unknown table or key 'size'"),
            ("[[server]]\nsize = 1", r"mail.toml: server must be a table, written \[server\]"),
            ("server = 5", r"mail.toml: server must be a table"),
            ("[listen]\naddress = ':25'", r"mail.toml: listen must be written \[\[listen\]\], once for each"),
            ("deliver = ['discard:']", r"mail.toml: deliver must be written \[\[deliver\]\]"),
            ("[server]\nsise = 1", r"mail.toml, \[server\]: unknown option 'sise': did you mean 'size'\?"),
            ("[server]\nhideSize = true", r"mail.toml, \[server\]: .*'hide_size'"),
            (
                "[server]\nsize = 'big'",
                r"mail.toml, \[server\]: option size: must be a whole number or None, not 'big'",
            ),
            ("[server]\nsize = -1", r"mail.toml, \[server\]: option size: must be above 0"),
            ("[server]\nsecured = true", r"mail.toml, \[server\]: option secured: means nothing without secure"),
            ("[server]\nkey = 'x'", r"mail.toml, \[server\]: option cert: key and cert go together"),
            ("[server]\non_data = 'x'", r"mail.toml, \[server\]: option on_data is a Python object"),
            ("[[listen]]\nlmtp = true", r"mail.toml, \[\[listen\]\] 1: address is missing, for example address = \""),
            ("[[listen]]\nadress = ':1'", r"\[\[listen\]\] 1: unknown key 'adress': did you mean 'address'\?"),
            ("[[listen]]\naddress = 25", r"\[\[listen\]\] 1: address must be a string, not 25"),
            ("[[listen]]\naddress = ':1'\n[[listen]]\naddress = 'x'", r"\[\[listen\]\] 2: 'x' is no address"),
            (
                "[[listen]]\naddress = ':1'\nlmpt = true",
                r"\[\[listen\]\] 1: unknown option 'lmpt': did you mean 'lmtp'",
            ),
            ("[[listen]]\naddress = ':1'\nlmtp = 1", r"\[\[listen\]\] 1: option lmtp: must be true or false"),
            ("[[listen]]\naddress = 'fd:3'\n" * 2, r"\[\[listen\]\] 2: fd:3 is given twice"),
            ("[[deliver]]\n", r"\[\[deliver\]\] 1: url is missing, for example url = \"maildir:"),
            ("[[deliver]]\nurl = 5", r"\[\[deliver\]\] 1: url must be a string"),
            ("[[deliver]]\nurl = 'maildr:x'", r"\[\[deliver\]\] 1: .*did you mean 'maildir'\?"),
            ("[[deliver]]\nurl = 'discard:'\nuri = 'x'", r"\[\[deliver\]\] 1: unknown key 'uri': did you mean 'url'\?"),
        ],
    )
    def test_name_file_key_and_reason(self, write: Any, text: str | bytes, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            effective(write(text))

    def test_a_mark_of_the_byte_order_is_none_of_them(self, write: Any) -> None:
        assert effective(write(b"\xef\xbb\xbf[server]\nsize = 5\n")).options.size == 5

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"nothing.toml: cannot be read: no such file or directory"):
            effective(str(tmp_path / "nothing.toml"))

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="cannot be read: is a directory"):
            effective(str(tmp_path))

    def test_a_secret_is_not_shown(self, write: Any) -> None:
        with pytest.raises(ConfigurationError, match="option key_password") as refused:
            effective(write("[server]\nkey_password = 12345"))
        assert "12345" not in str(refused.value)


class TestArgumentErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"settings": ["size"]}, "^--set size: write --set NAME=VALUE"),
            ({"settings": ["sise=1"]}, r"^--set sise: unknown option 'sise': did you mean 'size'\?"),
            ({"settings": ["size=big"]}, "^--set size: option size: must be a whole number or None, not 'big'"),
            ({"settings": ["on_data=x"]}, "^--set on_data: option on_data is a Python object, which only a program"),
            ({"settings": ["resolver=x"]}, "Python object"),
            ({"settings": ["=5"]}, "unknown option ''"),
            ({"settings": ["secured=true"]}, "^--set secured: option secured"),
            ({"listen": ["nonsense"]}, "^--listen: 'nonsense' is no address"),
            ({"listen": [":25", "[::1]:25", ":25"]}, "^--listen: :25 is given twice"),
            ({"deliver": ["nonsense"]}, "^--deliver: 'nonsense' has no scheme"),
        ],
    )
    def test_name_the_argument(self, arguments: dict[str, list[str]], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            effective(**arguments)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("listen", "metrics", "twice"),
        [
            (["fd:smtp", "fd:3"], None, "^--listen: fd:3 is given twice"),
            (["fd:3"], "fd:smtp", "^metrics: fd:smtp is given twice"),
            ([":25"], ":25", "^metrics: :25 is given twice"),
        ],
    )
    def test_an_address_in_two_forms_is_one(
        self, monkeypatch: pytest.MonkeyPatch, listen: list[str], metrics: str | None, twice: str
    ) -> None:
        """Whoever closed one of the two sockets would close the other's descriptor."""
        for name, value in (("PID", str(os.getpid())), ("FDS", "1"), ("FDNAMES", "smtp")):
            monkeypatch.setenv(f"LISTEN_{name}", value)
        with pytest.raises(ConfigurationError, match=twice):
            effective(listen=listen, program={} if metrics is None else {"metrics": metrics})

    def test_the_one_that_is_wrong_is_named(self, write: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"^--set size: "):
            effective(write("[server]\nsize = 5"), settings=["size=-5", "banner=x"])
        with pytest.raises(ConfigurationError, match=r"mail.toml, \[server\]: option size"):
            effective(write("[server]\nsize = -5"), settings=["banner=x"])

    def test_an_error_of_the_server_gets_its_place(self, write: Any) -> None:
        found = effective(write("[server]\nkey = 'k'\ncert = 'c'"))
        located = found.located(ConfigurationError("option key: cannot be read"))
        assert str(located).endswith("mail.toml, [server]: option key: cannot be read")


def test_the_file_in_the_documentation(write: Any, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "program.md"
    (example,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found = effective(write(example))
    assert found.options.cert == f"{tmp_path}/tls/mx.pem"
    assert [(each.address, each.options.secure, each.options.lmtp) for each in found.listeners] == [
        (":25", False, False),
        (":465", True, False),
        ("unix:/run/pillarbox/lmtp", False, True),
    ]
    assert [each.options.auth_optional for each in found.listeners] == [True, False, True]
    assert [each.target.url for each in found.routes] == ["maildir:/var/mail/in"]


class TestProgramArguments:
    @pytest.mark.parametrize(
        ("program", "problem"),
        [
            ({"traces": "localhost"}, "--traces: write http://HOST:PORT, or env: for what OTEL_EXPORTER_OTLP_ENDPOINT"),
            ({"traces": "http://["}, "--traces: write http"),
            ({"traces": "http://a b"}, "--traces: write http"),
            ({"traces": "http://h:70000"}, "--traces: write http"),
            ({"metrics": "my_host"}, "--metrics: 'my_host' is no address"),
            ({"log_format": "xml"}, "--log-format: "),
        ],
    )
    def test_a_mistake_is_shown_as_it_was_typed(self, program: dict[str, str], problem: str) -> None:
        with pytest.raises(ConfigurationError, match="^" + re.escape(problem)):
            effective(program=program)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "https://u:p@otel.example.com/x", "env:"])
    def test_collectors(self, url: str) -> None:
        assert effective(program={"traces": url}).program.traces == url

    def test_accept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/pillarbox.toml").touch()
        (tmp_path / "own").write_text("joe@example.com\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigurationError, match=r"^--accept: 'joe': has no @"):
            effective("etc/pillarbox.toml", accept=["joe"])
        # The shell completes it from here, not from the file's folder.
        accept = effective("etc/pillarbox.toml", accept=["file:own"]).listeners[0].access.accept
        assert accept is not None
        assert "joe@example.com" in accept
