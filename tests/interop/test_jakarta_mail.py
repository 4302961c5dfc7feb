"""Jakarta Mail, the client of Java programs; Angus Mail is the same code under its later name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from cryptography.x509 import load_pem_x509_certificates

from interop.conftest import Authority, Serving
from interop.peers import (
    BIG,
    HEADER,
    IMPLICIT,
    NOBODY,
    PLAIN,
    RECIPIENT,
    SENDER,
    SIMPLE,
    STARTTLS,
    TRICKY,
    USER,
    Server,
    expected_type,
    forms,
    mechanisms,
    missing,
    program,
    run,
    secret_of,
)

HERE = Path(__file__).parent
JARS = tuple(Path("/usr/share/java") / f"jakarta-{name}.jar" for name in ("mail", "activation"))
TO_TWO = (RECIPIENT, "bob@example.com")
EIGHT_BITS = SIMPLE + "Grüße\r\n".encode()
NO_DOTS = BIG.replace(b"\r\n.", b"\r\n")


class JakartaMail:
    """The program of ``java/`` that delivers with it."""

    def __init__(self, classes: Path, folder: Path, authority: Authority) -> None:
        path = ":".join(map(str, (classes, *JARS)))
        java = program("java", "default-jdk-headless")
        quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
        self._command = (java, *quick, "-Djava.net.preferIPv4Stack=true", "-cp", path, "Deliver")
        self._folder = folder
        self._authority = authority

    def deliver(
        self,
        server: Server,
        *,
        form: str = PLAIN,
        to: tuple[str, ...] = (RECIPIENT,),
        sender: str = SENDER,
        content: bytes = SIMPLE,
        settings: dict[str, str] | None = None,
    ) -> str:
        """Return what it reports; ``settings`` are its properties."""
        file = self._folder / "message"
        file.write_bytes(content)
        order = {
            "mail.smtp.host": "localhost",  # it finds no address in a certificate, only names
            "mail.smtp.port": str(server.port_of(form)),
            "mail.smtp.localhost": "client.example.org",
            "mail.smtp.starttls.enable": str(form == STARTTLS).lower(),
            "mail.smtp.starttls.required": str(form == STARTTLS).lower(),
            "mail.smtp.ssl.enable": str(form == IMPLICIT).lower(),
            "mail.smtp.ssl.checkserveridentity": "true",
            "mail.smtp.socketFactory.fallback": "false",
            "order.ca": str(self._authority.file),
            "order.from": sender,
            "order.to": ",".join(to),
            "order.file": str(file),
        } | (settings or {})
        outcome = run(self._command, "".join(f"{name}={value}\n" for name, value in order.items()).encode())
        outcome.expect_success()
        return outcome.output.strip()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Compile the program, once."""
    folder = tmp_path_factory.mktemp("java")

    def compile_it() -> Path:
        if not all(jar.exists() for jar in JARS):
            missing("Jakarta Mail is not installed (Debian package libjakarta-mail-java)")
        if not any(folder.iterdir()):
            paths = ("-cp", ":".join(map(str, JARS)), "-d", folder)
            run([program("javac", "default-jdk-headless"), *paths, HERE / "java/Deliver.java"]).expect_success()
        return folder

    return compile_it


@pytest.fixture
def jakarta(compiled: Callable[[], Path], tmp_path: Path, authority: Authority) -> JakartaMail:
    return JakartaMail(compiled(), tmp_path, authority)


def credential(mechanism: str, secret: str) -> dict[str, str]:
    """Return the properties; what it does not speak itself, it takes from Java's SASL."""
    how = {"mail.smtp.auth.mechanisms": mechanism}
    if mechanism in ("CRAM-MD5", "EXTERNAL"):
        how = {"mail.smtp.sasl.enable": "true", "mail.smtp.sasl.mechanisms": mechanism}
    return {"mail.smtp.auth": "true", "order.user": USER, "order.secret": secret} | how


@pytest.mark.proves("Jakarta Mail", "8-bit text with dots and long lines unchanged", "several recipients")
@pytest.mark.parametrize("form", forms("Jakarta Mail"))
def test_a_message_arrives_as_it_was_sent(server: Server, jakarta: JakartaMail, form: str) -> None:
    assert jakarta.deliver(server, form=form, to=TO_TWO, content=TRICKY) == "sent"
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to, delivery.content) == (SENDER, TO_TWO, TRICKY)
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("mechanism", mechanisms("Jakarta Mail"))
@pytest.mark.parametrize("form", forms("Jakarta Mail"))
def test_authentication(server: Server, jakarta: JakartaMail, form: str, mechanism: str) -> None:
    assert jakarta.deliver(server, form=form, settings=credential(mechanism, secret_of(mechanism))) == "sent"
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)


@pytest.mark.parametrize("mechanism", mechanisms("Jakarta Mail", "EXTERNAL"))
def test_a_login_with_the_clients_certificate(
    certified: Server, jakarta: JakartaMail, authority: Authority, tmp_path: Path, mechanism: str
) -> None:
    pem = authority.client.read_bytes()
    key, [own, *chain] = load_pem_private_key(pem, None), load_pem_x509_certificates(pem)
    assert isinstance(key, EllipticCurvePrivateKey)
    sealed = serialization.BestAvailableEncryption(b"secret")
    file = tmp_path / "client.p12"
    file.write_bytes(pkcs12.serialize_key_and_certificates(b"alice", key, own, chain, sealed))
    settings = credential(mechanism, "") | {"order.certificate": str(file)}
    assert jakarta.deliver(certified, form=STARTTLS, settings=settings) == "sent"
    assert (certified.delivery.user, certified.delivery.method) == (USER, mechanism)


@pytest.mark.proves("Jakarta Mail", "a wrong password")
@pytest.mark.parametrize("mechanism", mechanisms("Jakarta Mail"))
def test_a_wrong_password_is_refused(server: Server, jakarta: JakartaMail, mechanism: str) -> None:
    report = jakarta.deliver(server, form=STARTTLS, settings=credential(mechanism, "wrong"))
    assert report.startswith("AuthenticationFailedException"), report
    assert server.deliveries == []


@pytest.mark.proves("Jakarta Mail", "CHUNKING")
@pytest.mark.parametrize(("content", "size"), [(EIGHT_BITS, 50), (NO_DOTS, 100_000)], ids=["small", "big"])
@pytest.mark.parametrize("form", forms("Jakarta Mail"))
def test_a_message_in_chunks(server: Server, jakarta: JakartaMail, form: str, content: bytes, size: int) -> None:
    assert jakarta.deliver(server, form=form, content=content, settings=chunks_of(size)) == "sent"
    assert server.delivery.content == content
    chunks = [command.split() for command in server.commands if command.startswith("BDAT ")]
    assert [len(chunk) for chunk in chunks] == [2] * (len(content) // size) + [3]
    assert sum(int(chunk[1]) for chunk in chunks) == len(content)
    assert "DATA" not in server.verbs()


# https://github.com/eclipse-ee4j/angus-mail/issues/209: who hands out what was announced cannot know which dot to drop.
@pytest.mark.lived_with(
    "Jakarta Mail", "It doubles dots that begin a line in BDAT too: such a message arrives changed."
)
def test_dots_are_doubled_in_chunks(server: Server, jakarta: JakartaMail) -> None:
    assert jakarta.deliver(server, content=SIMPLE + b".dot\r\n.\r\n", settings=chunks_of(1000)) == "sent"
    assert server.delivery.content == SIMPLE + b"..dot\r\n..\r\n"


def chunks_of(size: int) -> dict[str, str]:
    return {"mail.smtp.chunksize": str(size)}


@pytest.mark.lived_with("Jakarta Mail", "It never says BODY=8BITMIME, though it makes 8-bit text of what was encoded.")
def test_eight_bits_that_nobody_announced(server: Server, jakarta: JakartaMail) -> None:
    text = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    content = HEADER + text + b"Gr=C3=BC=C3=9Fe\r\n"
    assert jakarta.deliver(server, content=content, settings={"mail.smtp.allow8bitmime": "true"}) == "sent"
    assert server.delivery.content.endswith("\r\n\r\nGrüße\r\n".encode())
    assert server.delivery.envelope.body_type == "7bit"


@pytest.mark.proves("Jakarta Mail", "DSN")
def test_wishes_for_reports(serving: Serving, jakarta: JakartaMail) -> None:
    wishes = {"mail.smtp.dsn.notify": "SUCCESS,FAILURE ORCPT=rfc822;" + RECIPIENT, "mail.smtp.dsn.ret": "HDRS"}
    with serving(hide_dsn=False) as server:
        assert jakarta.deliver(server, settings=wishes) == "sent"
        envelope = server.delivery.envelope
    assert envelope.dsn.ret == "HDRS"
    assert envelope.rcpt_to[0].dsn.notify == ("SUCCESS", "FAILURE")
    assert envelope.rcpt_to[0].dsn.orcpt == ("rfc822", RECIPIENT)


@pytest.mark.proves("Jakarta Mail", "SMTPUTF8")
def test_addresses_in_utf8(server: Server, jakarta: JakartaMail) -> None:
    settings = {"mail.mime.allowutf8": "true"}
    report = jakarta.deliver(
        server, sender="jörg@bücher.example", to=("用户@例え.jp",), content=TRICKY, settings=settings
    )
    assert report == "sent"
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert (delivery.smtp_utf8, delivery.content) == (True, TRICKY)


@pytest.mark.proves("Jakarta Mail", "AUTH= on MAIL (RFC 4954 5)")
def test_the_submitter_of_a_message(server: Server, jakarta: JakartaMail) -> None:
    settings = credential("PLAIN", secret_of("PLAIN")) | {"mail.smtp.submitter": "bob@example.org"}
    assert jakarta.deliver(server, settings=settings) == "sent"
    assert server.delivery.envelope.mail_from is not None
    assert server.delivery.envelope.mail_from.args["AUTH"] == "bob@example.org"


@pytest.mark.proves("Jakarta Mail", "a refused recipient")
def test_a_refused_recipient_ends_the_delivery(server: Server, jakarta: JakartaMail) -> None:
    report = jakarta.deliver(server, to=(RECIPIENT, NOBODY))
    assert "SMTPAddressFailedException 550 550 No such user here" in report
    assert server.deliveries == []


@pytest.mark.proves("Jakarta Mail", "a refused recipient")
def test_a_refused_recipient_is_allowed_and_the_others_get_the_message(server: Server, jakarta: JakartaMail) -> None:
    report = jakarta.deliver(server, to=(NOBODY, *TO_TWO), settings={"mail.smtp.sendpartial": "true"})
    assert report.startswith(f"address {RECIPIENT}\naddress bob@example.com\n"), report
    assert server.delivery.rcpt_to == TO_TWO


@pytest.mark.proves("Jakarta Mail", "4 MB")
@pytest.mark.parametrize("form", forms("Jakarta Mail"))
def test_a_big_message(server: Server, jakarta: JakartaMail, form: str) -> None:
    assert jakarta.deliver(server, form=form, content=BIG) == "sent"
    assert server.delivery.content == BIG


@pytest.mark.proves("Jakarta Mail", "many messages over one connection", "RSET between them")
def test_many_messages_over_one_connection(server: Server, jakarta: JakartaMail) -> None:
    settings = {"order.times": "20", "mail.smtp.userset": "true"}
    assert jakarta.deliver(server, settings=settings) == "sent"
    assert [delivery.content for delivery in server.deliveries] == [SIMPLE] * 20


@pytest.mark.proves("Jakarta Mail", "HELO")
def test_helo(server: Server, jakarta: JakartaMail) -> None:
    assert jakarta.deliver(server, settings={"mail.smtp.ehlo": "false"}) == "sent"
    assert server.delivery.transmission_type == "SMTP"


@pytest.mark.proves("Jakarta Mail", "a certificate that does not verify")
@pytest.mark.parametrize("form", forms("Jakarta Mail", STARTTLS, IMPLICIT))
def test_a_certificate_that_does_not_verify_is_reported(
    server: Server, jakarta: JakartaMail, authority: Authority, form: str
) -> None:
    server.tolerated = (ConnectionError,)  # TLS 1.3 may be complete for the server before this client objects
    report = jakarta.deliver(server, form=form, settings={"order.ca": str(authority.stranger)})
    assert "unable to find valid certification path" in report
    assert server.deliveries == []
