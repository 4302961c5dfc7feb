"""Dovecot before the server: its submission service, its submission proxy and its LMTP proxy (Dovecot 2.3)."""

from __future__ import annotations

import getpass
import grp
import os
import shutil
import smtplib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from interop.conftest import Authority
from interop.fronts import (
    CLIENT,
    HELLO,
    Backend,
    address_of,
    commands,
    connected,
    deliver,
    has_ipv6,
    not_let_in,
    reserved_port,
)
from interop.peers import (
    BIG,
    HOST,
    NOBODY,
    PASSWORD,
    RECIPIENT,
    SENDER,
    SIMPLE,
    TRICKY,
    USER,
    Background,
    missing,
    program,
    run,
)
from pillarbox import Address, Reject, Session

SUBMISSION, PROXY, LMTP = "Dovecot submission", "Dovecot submission proxy", "Dovecot LMTP proxy"
NAME = "dovecot.example.net"

Behind = Callable[..., Backend]


@dataclass(frozen=True)
class Dovecot:
    """A running Dovecot: where its services listen."""

    submission: int
    lmtp: int
    mail: Path  # a Maildir for each user


def dovecot_program() -> str:
    found = program("dovecot", "dovecot-core")
    version = run([found, "--version"]).output
    if not version.startswith("2.3."):
        missing(f"Dovecot {version.split()[0]} wants a configuration of another form than 2.3")
    for service, package in (("submission", "dovecot-submissiond"), ("lmtp", "dovecot-lmtpd")):
        if not Path("/usr/lib/dovecot", service).exists():
            missing(f"Dovecot has no {service} service (Debian package {package})")
    return found


def users() -> tuple[str, str, str]:
    """Return whom it runs as: user and group, and the user who meets strangers; for root those of the package."""
    if os.geteuid() == 0:
        return "dovecot", "dovecot", "dovenull"
    return getpass.getuser(), grp.getgrgid(os.getegid()).gr_name, getpass.getuser()


@contextmanager
def dovecot(
    *lines: str,
    passdb: str = f"password={PASSWORD}",
    trusted: Path | None = None,
    host: str = HOST,
    certified: Mapping[str, bytes] | None = None,
    known: Sequence[str] = (),
) -> Iterator[Dovecot]:
    """Run Dovecot with these lines in its configuration.

    passdb: what a user's login leads to. trusted: the authority of the server's certificate. certified: Dovecot's own
    key and certificate, in PEM form; then it wants TLS. known: who has a mailbox; everybody, where nobody is named.
    """
    command = dovecot_program()
    # Not tmp_path: Unix sockets want short paths, and Dovecot's users have to get there.
    folder = Path(tempfile.mkdtemp(prefix="pb"))
    folder.chmod(0o755)
    user, group, login = users()
    mail = folder / "mail"
    mail.mkdir()
    shutil.chown(mail, user, group)
    if trusted is not None:
        shutil.copyfile(trusted, folder / "ca.pem")
        lines += (f"ssl_client_ca_file = {folder}/ca.pem",)
    for name, octets in (certified or {}).items():
        (folder / name).write_bytes(octets)
        lines += ("ssl = required", f"ssl_{name} = <{folder}/{name}")
    fields = f"uid={user} gid={group} home={mail}/%u"
    userdb = f"driver = static\n    args = {fields} allow_all_users=yes"
    if known:
        (folder / "users").write_text("".join(f"{name}:::::\n" for name in known))
        userdb = f"driver = passwd-file\n    args = {folder}/users\n    default_fields = {fields}"
    more = "\n".join(lines)
    with reserved_port(host) as submission, reserved_port(host) as lmtp:
        (folder / "dovecot.conf").write_text(f"""
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
protocols = submission lmtp
hostname = {NAME}
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {login}
first_valid_uid = 1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
mail_location = maildir:{mail}/%u
passdb {{
    driver = static
    args = {passdb}
}}
userdb {{
    {userdb}
}}
service anvil {{
    chroot =
}}
service submission-login {{
    chroot =
    inet_listener submission {{
        address = {host}
        port = {submission}
    }}
}}
service lmtp {{
    inet_listener lmtp {{
        address = {host}
        port = {lmtp}
    }}
}}
{more}
""")
        try:
            with Background(command, "-F", "-c", folder / "dovecot.conf", folder=folder) as process:
                process.line("starting up for submission, lmtp")
                yield Dovecot(submission, lmtp, mail)
        finally:
            shutil.rmtree(folder)


def relay(port: int, **more: str) -> list[str]:
    settings = {"host": HOST, "port": str(port)} | more
    return [f"submission_relay_{name} = {value}" for name, value in settings.items()]


# --- Submission: Dovecot knows the user, and gives the mail to the server


@pytest.mark.proves(SUBMISSION, "XCLIENT with ADDR, PORT, HELO, PROTO and LOGIN", "BDAT")
def test_submission(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST], auth_optional=False, allow_insecure_auth=False)
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        deliver(client, content=TRICKY)
        source = address_of(client)
    assert backend.delivery.content.endswith(TRICKY)
    assert (backend.delivery.user, backend.delivery.method) == (USER, "XCLIENT")
    assert backend.client.remote == source
    assert (backend.client.x_client["HELO"], backend.client.x_client["PROTO"]) == (HELLO, "ESMTP")
    assert backend.connects == [HOST, CLIENT]
    hello, xclient, *others = commands(caplog)
    assert hello == f"EHLO {NAME}"
    verb, *attributes = xclient.split(" ")
    assert verb == "XCLIENT"
    assert set(attributes) == {
        f"ADDR={source[0]}",
        f"PORT={source[1]}",
        f"HELO={HELLO}",
        "PROTO=ESMTP",
        f"LOGIN={USER}",
    }
    size = len(backend.delivery.content)
    assert others == [
        f"EHLO {NAME}",
        f"MAIL FROM:<{SENDER}>",
        f"RCPT TO:<{RECIPIENT}>",
        f"BDAT {size} LAST",
        "QUIT",
    ]


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")
@pytest.mark.proves(SUBMISSION, "XCLIENT with an IPv6 address")
def test_submission_with_ipv6(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST])
    with (
        dovecot(*relay(backend.port, trusted="yes"), host="::1") as front,
        connected(front.submission, host="::1", source="::1") as client,
    ):
        client.login(USER, PASSWORD)
        deliver(client)
        assert backend.client.remote == address_of(client)
    assert " ADDR=IPV6:::1" in commands(caplog)[1]


@pytest.mark.proves(SUBMISSION, "XCLIENT with LOGIN in xtext")
def test_a_login_is_encoded(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST])
    name = "alice+lists=1@example.com"
    lines = relay(backend.port, trusted="yes")
    with dovecot("auth_username_chars =", *lines) as front, connected(front.submission) as client:
        client.login(name, PASSWORD)
        deliver(client)
    assert " LOGIN=alice+2Blists+3D1@example.com" in commands(caplog)[1]
    assert (backend.delivery.user, backend.client.x_client["LOGIN"]) == (name, name)


@pytest.mark.proves(SUBMISSION, "a client that the server does not let in")
def test_a_client_that_is_not_let_in(behind: Behind) -> None:
    backend = behind(use_xclient=[HOST], on_connect=not_let_in)
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        assert client.mail(SENDER)[0] == 421  # the server's own words are in Dovecot's log
    assert backend.seen == []


@pytest.mark.proves(SUBMISSION, "a server that knows no XCLIENT")
@pytest.mark.parametrize("trusted", ["yes", "no"])
def test_without_xclient(behind: Behind, caplog: pytest.LogCaptureFixture, trusted: str) -> None:
    backend = behind(use_xclient=[HOST] if trusted == "no" else False)
    with dovecot(*relay(backend.port, trusted=trusted)) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        deliver(client)
    assert (backend.client.remote[0], backend.delivery.user) == (HOST, None)
    assert not any(command.startswith("XCLIENT") for command in commands(caplog))


@pytest.mark.proves(SUBMISSION, "BDAT in chunks", "DATA where CHUNKING is hidden")
@pytest.mark.parametrize("hidden", [False, True], ids=["BDAT", "DATA"])
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
def test_a_message_arrives_as_it_was_sent(
    behind: Behind, caplog: pytest.LogCaptureFixture, content: bytes, hidden: bool
) -> None:
    backend = behind(use_xclient=[HOST], hide_chunking=hidden)
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        deliver(client, content=content)
    assert backend.delivery.content.endswith(content)
    *chunks, last = [command for command in commands(caplog) if command.startswith(("BDAT", "DATA"))]
    assert last.endswith("DATA" if hidden else " LAST")
    assert len(chunks) >= (4 if content == BIG and not hidden else 0)
    assert "QUIT" in commands(caplog)[-1]


@pytest.mark.proves(SUBMISSION, "BURL-less relay")
def test_the_client_sends_chunks(behind: Behind) -> None:
    """Dovecot offers BURL to clients and needs no server that knows it: what it gives on is the message itself."""
    backend = behind(use_xclient=[HOST])
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        client.ehlo()  # what Dovecot offers now is what the server can
        assert client.has_extn("burl")
        client.mail(SENDER, ["BODY=8BITMIME"])
        client.rcpt(RECIPIENT)
        half = len(TRICKY) // 2
        for words, chunk in ((half, TRICKY[:half]), (f"{len(TRICKY) - half} LAST", TRICKY[half:])):
            client.send(f"BDAT {words}\r\n".encode() + chunk)
            assert client.getreply()[0] == 250
    assert backend.delivery.content.endswith(TRICKY)


@pytest.mark.lived_with(SUBMISSION, "It says AUTH=user on MAIL, where RFC 4954 wants a mailbox or <>.")
def test_a_submitter_that_is_no_mailbox(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST])
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        deliver(client)
    assert any(command.endswith(f" AUTH={USER}") for command in commands(caplog))
    assert len(backend.deliveries) == 1


@pytest.mark.proves(SUBMISSION, "several messages in a session")
def test_several_messages(behind: Behind) -> None:
    backend = behind(use_xclient=[HOST])
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        for _ in range(3):
            deliver(client)
    assert [delivery.user for delivery in backend.deliveries] == [USER] * 3


@pytest.mark.proves(SUBMISSION, "refused senders, recipients and messages")
def test_what_the_server_refuses_is_reported(behind: Behind) -> None:
    def on_mail_from(address: Address, session: Session) -> None:
        if address.address == "banned@example.org":
            raise Reject(553, "Not you")

    backend = behind(use_xclient=[HOST], size=100_000, on_mail_from=on_mail_from)
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        client.ehlo()  # what Dovecot offers now is what the server can
        code, text = client.mail("banned@example.org")
        assert (code, b"Not you" in text) == (553, True)
        client.rset()  # a second MAIL without it is never answered by Dovecot 2.3.19, whatever server it speaks to
        assert list(deliver(client, [RECIPIENT, NOBODY])) == [NOBODY]
        assert client.mail(SENDER, [f"SIZE={len(BIG)}"])[0] == 552
        assert client.mail(SENDER)[0] == client.rcpt(RECIPIENT)[0] == 250
        assert client.data(BIG)[0] == 552
        deliver(client)
    assert [delivery.rcpt_to for delivery in backend.deliveries] == [(RECIPIENT,)] * 2


@pytest.mark.proves(SUBMISSION, "DSN")
def test_delivery_reports(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST], hide_dsn=False)
    with dovecot(*relay(backend.port, trusted="yes")) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        client.ehlo()  # what Dovecot offers now is what the server can
        assert client.has_extn("dsn")
        wanted = ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;a+2Bb@example.com"]
        assert client.sendmail(SENDER, [RECIPIENT], SIMPLE, ["RET=HDRS", "ENVID=QQ314159"], wanted) == {}
    mail, rcpt = (command for command in commands(caplog) if command.startswith(("MAIL", "RCPT")))
    assert {"RET=HDRS", "ENVID=QQ314159"} <= set(mail.split(" "))
    assert set(wanted) <= set(rcpt.split(" "))
    assert backend.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves(SUBMISSION, "AUTH")
def test_dovecot_authenticates_itself(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(auth_optional=False)
    login = relay(backend.port, user=USER, password=PASSWORD)
    with dovecot(*login) as front, connected(front.submission) as client:
        client.login("bob", PASSWORD)
        deliver(client)
    assert (backend.delivery.user, backend.delivery.method) == (USER, "PLAIN")
    assert commands(caplog)[:2] == [f"EHLO {NAME}", "AUTH PLAIN ..."]


@pytest.mark.proves(SUBMISSION, "STARTTLS", "implicit TLS")
@pytest.mark.parametrize("form", ["starttls", "smtps"])
def test_submission_by_tls(behind: Behind, authority: Authority, caplog: pytest.LogCaptureFixture, form: str) -> None:
    backend = behind(use_xclient=[HOST], auth_optional=False)
    port = backend.port if form == "starttls" else backend.tls_port
    lines = relay(port, host="localhost", trusted="yes", ssl=form)
    with dovecot(*lines, trusted=authority.file) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        deliver(client, content=BIG)
        assert backend.client.remote == address_of(client)
    assert (backend.delivery.user, backend.delivery.transmission_type) == (USER, "ESMTPSA")
    assert backend.delivery.content.endswith(BIG)
    verbs = [command.split(" ")[0] for command in commands(caplog)]
    begin = ["EHLO", "STARTTLS", "EHLO", "XCLIENT"] if form == "starttls" else ["EHLO", "XCLIENT"]
    assert verbs[: len(begin)] == begin


# --- The submission proxy: Dovecot only asks who may, and where to


@pytest.mark.proves(PROXY, "XCLIENT", "AUTH")
@pytest.mark.parametrize("trusts", [True, False], ids=["XCLIENT", "no XCLIENT"])
def test_submission_proxy(behind: Behind, caplog: pytest.LogCaptureFixture, trusts: bool) -> None:
    backend = behind(use_xclient=[HOST] if trusts else False, auth_optional=False)
    place = f"password={PASSWORD} proxy=y host={HOST} port={backend.port} pass={PASSWORD}"
    with dovecot(passdb=place) as front, connected(front.submission) as client:
        client.login(USER, PASSWORD)
        deliver(client, content=TRICKY)
        source = address_of(client)
    assert backend.delivery.content.endswith(TRICKY)
    assert backend.delivery.user == USER
    assert (backend.client.remote == source) is trusts
    verbs = [command.split(" ")[0] for command in commands(caplog)]
    first = ["EHLO", "XCLIENT", "EHLO", "AUTH"] if trusts else ["EHLO", "AUTH"]
    assert verbs == [*first, "MAIL", "RCPT", "DATA", "QUIT"]
    assert commands(caplog)[len(first) - 1] == "AUTH PLAIN ..."


# --- The LMTP proxy


@contextmanager
def lmtp_proxy(port: int, trusted: Path | None = None, **more: str) -> Iterator[smtplib.SMTP]:
    """Connect a client to Dovecot, which gives mail for everyone to this port, and greet it."""
    place = {"proxy": "y", "nopassword": "y", "host": HOST, "port": str(port)} | more
    passdb = " ".join(f"{name}={value}" for name, value in place.items())
    with dovecot("lmtp_proxy = yes", passdb=passdb, trusted=trusted) as front, connected(front.lmtp) as client:
        client.ehlo_msg = "lhlo"
        assert client.ehlo()[0] == 250
        yield client


def answers(client: smtplib.SMTP, recipients: tuple[str, ...], content: bytes = SIMPLE) -> tuple[list[int], list[int]]:
    """Send a message; return the replies to the recipients, and those to the message for each that was accepted."""
    assert client.mail(SENDER)[0] == 250
    named = [client.rcpt(recipient)[0] for recipient in recipients]
    first, _ = client.data(content)
    return named, [first] + [client.getreply()[0] for _ in range(named.count(250) - 1)]


@pytest.mark.proves(LMTP, "XCLIENT", "BDAT", "a reply for each recipient")
@pytest.mark.parametrize("hidden", [False, True], ids=["BDAT", "DATA"])
def test_lmtp_proxy(behind: Behind, caplog: pytest.LogCaptureFixture, hidden: bool) -> None:
    backend = behind(use_xclient=[HOST], hide_chunking=hidden)
    recipients = (RECIPIENT, NOBODY, "full@example.com", "bob@example.com")
    with lmtp_proxy(backend.lmtp_port) as client:
        assert answers(client, recipients, TRICKY) == ([250, 550, 250, 250], [250, 452, 250])
        source = address_of(client)
    assert backend.delivery.content.endswith(TRICKY)
    assert backend.delivery.rcpt_to == (RECIPIENT, "full@example.com", "bob@example.com")
    assert (backend.client.remote, backend.client.x_client["PROTO"]) == (source, "LMTP")
    assert backend.delivery.transmission_type == "LMTP"
    verbs = [command.split(" ")[0] for command in commands(caplog)]
    data = "DATA" if hidden else "BDAT"
    assert verbs == ["LHLO", "XCLIENT", "LHLO", "MAIL", "RCPT", "RCPT", "RCPT", "RCPT", data, "QUIT"]


@pytest.mark.proves(LMTP, "big messages")
def test_lmtp_proxy_with_a_big_message(behind: Behind) -> None:
    backend = behind()
    with lmtp_proxy(backend.lmtp_port) as client:
        assert answers(client, (RECIPIENT,), BIG) == ([250], [250])
    assert backend.delivery.content.endswith(BIG)


@pytest.mark.proves(LMTP, "SMTP to the server")
def test_lmtp_proxy_to_smtp(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST])
    with lmtp_proxy(backend.port, protocol="smtp") as client:
        assert answers(client, (RECIPIENT, "bob@example.com")) == ([250, 250], [250, 250])
        assert backend.client.remote == address_of(client)
    assert backend.delivery.rcpt_to == (RECIPIENT, "bob@example.com")
    assert backend.delivery.transmission_type == "ESMTP"


@pytest.mark.proves(LMTP, "STARTTLS", "implicit TLS")
@pytest.mark.parametrize("form", ["starttls", "ssl"])
def test_lmtp_proxy_by_tls(behind: Behind, authority: Authority, form: str) -> None:
    backend = behind(use_xclient=[HOST])
    port, protocol = (backend.lmtp_port, "lmtp") if form == "starttls" else (backend.tls_port, "smtp")
    place = {"host": "localhost", "hostip": HOST, "protocol": protocol, form: "yes"}
    with lmtp_proxy(port, authority.file, **place) as client:
        assert answers(client, (RECIPIENT,)) == ([250], [250])
        assert backend.client.remote == address_of(client)
    assert backend.delivery.transmission_type == ("LMTPS" if form == "starttls" else "ESMTPS")
