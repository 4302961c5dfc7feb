"""Postfix, which relays to us under TLS and with AUTH."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from interop.conftest import Authority
from interop.mta import LMTP, SMTP
from interop.peers import BIG, PASSWORD, RECIPIENT, USER
from interop.postfix import MESSAGES, Start


def trusting(authority: Authority) -> dict[str, str]:
    """Return what makes Postfix insist on TLS with a server whose certificate verifies."""
    return {
        f"{client}_tls_{name}": value
        for client in ("smtp", "lmtp")
        for name, value in (
            ("security_level", "secure"),
            ("secure_cert_match", "localhost"),
            ("CAfile", str(authority.file)),
            ("loglevel", "1"),
        )
    }


LOGIN_NEEDED = {"auth_optional": False, "allow_insecure_auth": False}


def credential(password: str, mechanism: str) -> dict[str, str]:
    """Return what makes Postfix authenticate."""
    return {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": f"static:{USER}:{password}",
        "smtp_sasl_mechanism_filter": mechanism,
        "smtp_sasl_security_options": "",
    }


@pytest.mark.proves("Postfix smtp", "STARTTLS, with a verified certificate")
@pytest.mark.proves("Postfix lmtp", "STARTTLS, with a verified certificate")
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_starttls(relay: Start, authority: Authority, transport: str) -> None:
    mta = relay(transport, **trusting(authority))
    mta.send(content=BIG)
    mail = mta.server.next()
    assert mail.transmission_type == ("ESMTPS" if transport == SMTP else "LMTPS")
    assert mail.tls is not None
    assert mail.tls.version == "TLSv1.3"
    assert mail.body == BIG.partition(b"\r\n\r\n")[2]
    mta.sent(RECIPIENT)
    mta.postfix.log.find("Verified TLS connection established to 127.0.0.1.*TLSv1.3")


@pytest.mark.proves("Postfix smtp", "implicit TLS")
def test_implicit_tls(relay: Start, authority: Authority) -> None:
    mta = relay(options={"secure": True}, smtp_tls_wrappermode="yes", **trusting(authority))
    mta.send(content=BIG)
    mail = mta.server.next()
    assert mail.transmission_type == "ESMTPS"
    assert "STARTTLS" not in mta.verbs(mail)
    assert mail.body == BIG.partition(b"\r\n\r\n")[2]
    mta.sent(RECIPIENT)


@pytest.mark.proves("Postfix smtp", "several messages in one TLS connection (tlsproxy)")
def test_a_tls_connection_is_used_again(relay: Start, authority: Authority) -> None:
    reuse = {"smtp_tls_connection_reuse": "yes", "smtp_connection_cache_destinations": "static:all"}
    mta = relay(**trusting(authority), **reuse)
    assert len(set(mta.one_after_the_other())) < MESSAGES
    mta.postfix.log.find("postfix/tlsproxy.*Verified TLS connection established")


@pytest.mark.proves("Postfix smtp", "TLS with a client certificate")
def test_a_client_certificate(relay: Start, authority: Authority, tmp_path: Path) -> None:
    ours = trustme.CA()
    file = tmp_path / "client.pem"
    ours.issue_cert("mta.example.org").private_key_and_cert_chain_pem.write_to_path(file)
    asks = {"request_cert": True, "ca": ours.cert_pem.bytes()}
    mta = relay(options=asks, **trusting(authority), smtp_tls_cert_file=file, smtp_tls_key_file=file)
    mta.send()
    mail = mta.server.next()
    assert mail.tls is not None
    assert mail.tls.authorized
    assert mail.tls.peer_certificate is not None


@pytest.mark.proves("Postfix smtp", "mail waits where the certificate does not verify")
def test_a_certificate_that_does_not_verify(relay: Start, authority: Authority) -> None:
    mta = relay(**(trusting(authority) | {"smtp_tls_CAfile": str(authority.stranger)}))
    mta.send()
    assert "Server certificate not" in mta.sent(RECIPIENT, "deferred", "4.7.5")
    assert mta.server.mails.empty()
    assert list(mta.postfix.queue()) == [RECIPIENT]


@pytest.mark.proves("Postfix smtp", "AUTH PLAIN, LOGIN, CRAM-MD5 under TLS")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_authentication(relay: Start, authority: Authority, mechanism: str) -> None:
    mta = relay(options=LOGIN_NEEDED, **trusting(authority), **credential(PASSWORD, mechanism))
    mta.send()
    mail = mta.server.next()
    assert (mail.transmission_type, mail.method) == ("ESMTPSA", mechanism)
    mta.sent(RECIPIENT)


@pytest.mark.proves("Postfix smtp", "mail waits where AUTH fails")
def test_a_wrong_password(relay: Start, authority: Authority) -> None:
    mta = relay(options=LOGIN_NEEDED, **trusting(authority), **credential("wrong", "PLAIN"))
    mta.send()
    assert "535 5.7.8" in mta.sent(RECIPIENT, "deferred", "4.7.8")
    assert mta.server.mails.empty()
