"""``pillarbox probe`` against real servers: what it finds, what it warns of, how it ends; and that it sends no mail."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cli.conftest import Run, Serving
from interop.peers import HOST, Server
from interop.postfix import Postfix
from pillarbox.cli.certificates import Certificate

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def self_signed(*names: str, begin: datetime.datetime, end: datetime.datetime) -> dict[str, bytes]:
    """Return the options of a server with such a certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return {
        "key": key.private_bytes(pem, form, serialization.NoEncryption()),
        "cert": certificate.public_bytes(pem),
    }


def asked(run: Run, *arguments: str, status: int = 0) -> dict[str, Any]:
    result = run("probe", "--json", *arguments)
    assert result.exit_code == status, result.output
    [report] = json.loads(result.stdout)
    assert report["status"] == status or "--strict" in arguments
    return dict(report)


def codes(report: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in report["warnings"]]


def place(server: Server) -> str:
    return f"{HOST}:{server.port}"


class TestWhatItFinds:
    @pytest.mark.usefixtures("trusting")
    def test_starttls(self, run: Run, serving: Serving) -> None:
        with serving(size=5000, allow_insecure_auth=False, auth_methods=["PLAIN"]) as server:
            report = asked(run, place(server), "--strict")
        assert report["greeting"] == "220 mx.example.com ESMTP"
        assert (report["keywords"]["SIZE"], report["keywords"]["PIPELINING"]) == ("5000", "")
        assert "AUTH" not in report["keywords"]
        assert report["keywords_behind_tls"]["AUTH"] == "PLAIN"
        assert "STARTTLS" not in report["keywords_behind_tls"]
        tls = report["tls"]
        assert (tls["implicit"], tls["version"], tls["trusted"], tls["distrust"]) == (False, "TLSv1.3", True, None)
        assert tls["certificate"]["names"] == ["localhost", "127.0.0.1"]
        assert "trustme" in tls["certificate"]["issuer"]
        assert set(report["seconds"]) == {"connect", "greeting", "ehlo", "tls"}
        assert report["warnings"] == []
        assert "MAIL" not in server.verbs()

    @pytest.mark.usefixtures("trusting")
    def test_implicit_tls(self, run: Run, server: Server) -> None:
        report = asked(run, f"smtps://{HOST}:{server.tls_port}")
        assert (report["keywords"], report["tls"]["implicit"], report["tls"]["trusted"]) == (None, True, True)
        assert report["keywords_behind_tls"]["AUTH"]

    def test_what_is_behind_a_certificate_that_is_not_trusted(self, run: Run, server: Server) -> None:
        report = asked(run, place(server))
        assert (report["tls"]["trusted"], codes(report)) == (False, ["certificate-not-trusted", "plaintext-auth"])
        assert report["tls"]["distrust"] == "unable to get local issuer certificate"
        assert "AUTH" in report["keywords_behind_tls"]

    @pytest.mark.parametrize("arguments", [("lmtp://{0}",), ("{0}", "--lmtp")])
    def test_lmtp(self, run: Run, server: Server, arguments: tuple[str, ...]) -> None:
        report = asked(run, *(each.format(f"{HOST}:{server.lmtp_port}") for each in arguments))
        assert report["protocol"] == "lmtp"
        assert "LHLO" in server.verbs()

    def test_a_unix_socket(self, run: Run, server: Server) -> None:
        report = asked(run, f"lmtp:{server.lmtp_path}")
        assert report["server"] == f"lmtp:{server.lmtp_path}"
        assert "plaintext-auth" not in codes(report)

    def test_for_a_person(self, run: Run, server: Server) -> None:
        result = run("probe", place(server))
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == f"{place(server)} (SMTP)"
        assert "  greeting    220 mx.example.com ESMTP" in lines
        assert any(line.startswith("  before TLS  PIPELINING, 8BITMIME") for line in lines)
        assert any(line.startswith("  TLS         TLSv1.3, TLS_AES_256_GCM_SHA384, by STARTTLS") for line in lines)
        assert "  trusted     no: unable to get local issuer certificate" in lines
        assert lines[-1].startswith("  warning     AUTH PLAIN LOGIN")

    def test_postfix(self, run: Run) -> None:
        with Postfix(message_size_limit="12345", smtpd_tls_security_level="none") as postfix:
            report = asked(run, f"unix:{postfix.path}")
        assert report["keywords"]["SIZE"] == "12345"
        assert "ESMTP Postfix" in report["greeting"]


class TestWarnings:
    def test_no_starttls(self, run: Run, serving: Serving) -> None:
        with serving(hide_starttls=True, disabled_commands=["AUTH"]) as server:
            assert codes(asked(run, place(server))) == ["no-starttls"]
            assert run("probe", "--strict", place(server)).exit_code == 1

    @pytest.mark.usefixtures("trusting")
    def test_login_in_plain_text(self, run: Run, serving: Serving) -> None:
        with serving(auth_methods=["PLAIN", "CRAM-MD5", "LOGIN"]) as server:
            [warning] = asked(run, place(server))["warnings"]
        assert warning["code"] == "plaintext-auth"
        assert warning["text"] == "AUTH PLAIN LOGIN is offered before TLS: passwords can be read on the way"

    @pytest.mark.usefixtures("trusting")
    def test_another_name(self, run: Run, serving: Serving) -> None:
        with serving("mx.example.org", disabled_commands=["AUTH"]) as server:
            [warning] = asked(run, place(server))["warnings"]
        assert warning["code"] == "certificate-wrong-name"
        assert warning["text"] == "the certificate is not for 127.0.0.1, but for mx.example.org"

    @pytest.mark.parametrize(
        ("begin", "end", "expected"),
        [
            (-10, -2, ("certificate-expired", "the certificate expired on ")),
            (-10, 3.5, ("certificate-expires-soon", "the certificate expires in 3 days, on ")),
            (-10, 1.5, ("certificate-expires-soon", "the certificate expires in 1 day, on ")),
            (-10, 0.5, ("certificate-expires-soon", "the certificate expires in less than a day, on ")),
            (2, 90, ("certificate-not-yet-valid", "the certificate is valid only from ")),
        ],
    )
    def test_dates(self, run: Run, serving: Serving, begin: float, end: float, expected: tuple[str, str]) -> None:
        options = self_signed("localhost", begin=NOW + begin * DAY, end=NOW + end * DAY)
        with serving(disabled_commands=["AUTH"], **options) as server:
            found = asked(run, f"localhost:{server.port}")["warnings"]
        assert found[0]["code"] == expected[0]
        assert found[0]["text"].startswith(expected[1])
        assert found[-1]["code"] == "certificate-not-trusted"

    def test_starttls_that_fails(self, run: Run, saying: Callable[[bytes], int]) -> None:
        port = saying(b"220 hello\r\n250-hello\r\n250 STARTTLS\r\n454 not today\r\n")
        report = asked(run, f"{HOST}:{port}", status=76)
        assert codes(report) == ["starttls-fails"]

    def test_old_servers(self, run: Run, saying: Callable[[bytes], int]) -> None:
        port = saying(b"220 hello\r\n502 what?\r\n250 hello\r\n")
        assert codes(asked(run, f"{HOST}:{port}")) == ["no-starttls", "no-esmtp"]


class TestStatus:
    def test_nothing_listens(self, run: Run, closed_port: int) -> None:
        report = asked(run, f"{HOST}:{closed_port}", status=68)
        assert report["failure"].endswith("connection refused: nothing listens there")
        assert "failed      cannot connect" in run("probe", f"{HOST}:{closed_port}").stdout

    @pytest.mark.parametrize(
        ("octets", "status", "message"),
        [
            (b"421 too busy\r\n", 75, "it refuses: 421 too busy"),
            (b"554 not you\r\n", 69, "it refuses: 554 not you"),
            (b"HTTP/1.1 400 Bad Request\r\n", 76, "does not speak SMTP"),
            (b"220 hello\r\n", 75, "broke the connection off"),
            (b"220 hello\r\n550 no\r\n550 no\r\n", 69, "it refuses: 550 no"),
            (b"220 \x1b[2J\r\n421 \x1b[2J\r\n", 75, "it refuses: 421 ?[2J"),
        ],
    )
    def test_a_strange_server(
        self, run: Run, saying: Callable[[bytes], int], octets: bytes, status: int, message: str
    ) -> None:
        assert message in asked(run, f"{HOST}:{saying(octets)}", status=status)["failure"]

    def test_one_that_says_nothing(self, run: Run) -> None:
        with socket.create_server((HOST, 0)) as silent:
            report = asked(run, "--timeout", "0.2", f"{HOST}:{silent.getsockname()[1]}", status=76)
        assert "if it waits for TLS, write smtps://" in report["failure"]

    def test_implicit_tls_where_there_is_none(self, run: Run, server: Server) -> None:
        report = asked(run, f"smtps://{place(server)}", status=76)
        assert "does not speak TLS here" in report["failure"]

    def test_a_host_alone_is_asked_on_three_ports(self, run: Run) -> None:
        result = run("probe", "--json", "--timeout", "0.2", "[::1]")
        reports = json.loads(result.stdout)
        assert [each["server"] for each in reports] == ["[::1]:25", "[::1]:465", "[::1]:587"]

    @pytest.mark.parametrize(
        ("arguments", "place"),
        [
            (["lmtp://[::1]"], ("[::1]:24", "lmtp")),
            (["--lmtp", "[::1]"], ("[::1]:24", "lmtp")),
            (["--lmtp", "smtp://[::1]"], ("[::1]:24", "lmtp")),
            (["smtps://[::1]"], ("[::1]:465", "smtp")),
            (["smtp://[::1]"], ("[::1]:25", "smtp")),
        ],
    )
    def test_a_scheme_has_its_port(self, run: Run, arguments: list[str], place: tuple[str, str]) -> None:
        result = run("probe", "--json", "--timeout", "0.2", *arguments)
        assert [(each["server"], each["protocol"]) for each in json.loads(result.stdout)] == [place]

    def test_one_that_says_little_at_a_time(self, run: Run) -> None:
        def drip(listening: socket.socket) -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as client:
                while True:
                    client.sendall(b"2")
                    time.sleep(0.05)

        with socket.create_server((HOST, 0)) as listening:
            dripping = threading.Thread(target=drip, args=(listening,), daemon=True)
            dripping.start()
            report = asked(run, "--timeout", "0.3", f"{HOST}:{listening.getsockname()[1]}", status=76)
            dripping.join(10)
        assert "timed out" in report["failure"]

    @pytest.mark.parametrize(
        "arguments", [[], ["::1:25"], ["http://x"], ["--timeout", "0", "x"], ["--timeout", "1e10", "x"]]
    )
    def test_wrong_arguments(self, run: Run, arguments: list[str]) -> None:
        assert run("probe", *arguments).exit_code == 2


class TestNames:
    @pytest.mark.parametrize(
        ("names", "host", "covered"),
        [
            (["mx.example.com"], "MX.example.com.", True),
            (["mx.example.com"], "example.com", False),
            (["*.example.com"], "mx.example.com", True),
            (["*.example.com"], "a.mx.example.com", False),
            (["*.example.com"], "example.com", False),
            (["*.example.com"], ".example.com", False),
            (["192.0.2.1"], "192.0.2.1", True),
            (["::1"], "0:0:0:0:0:0:0:1", True),
            (["xn--mnchen-3ya.example"], "münchen.example", True),
        ],
    )
    def test_which_hosts_a_certificate_is_for(self, names: list[str], host: str, covered: bool) -> None:
        issued = trustme.CA().issue_cert(*names)
        assert Certificate.from_pem(issued.cert_chain_pems[0].bytes()).covers(host) is covered

    def test_no_certificate(self) -> None:
        with pytest.raises(ValueError, match=r"."):
            Certificate.from_pem(b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n")
