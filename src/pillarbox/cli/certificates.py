"""What a certificate says, and what is wrong with it, for ``probe`` and ``check``: in words, and on this date."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509

SOON = timedelta(days=14)  # those who renew by themselves do it 30 days before the end


@dataclass(frozen=True)
class Certificate:
    """The facts of one certificate."""

    subject: str
    issuer: str
    names: tuple[str, ...]  # of its subjectAltName: host names, then addresses
    not_before: datetime
    not_after: datetime
    self_signed: bool

    @classmethod
    def from_der(cls, der: bytes) -> Certificate:
        """Raise ValueError for what is no certificate."""
        from cryptography import x509

        return _facts(x509.load_der_x509_certificate(der))

    @classmethod
    def from_pem(cls, pem: bytes) -> Certificate:
        """Take the first of a chain. Raise ValueError for what is no certificate."""
        from cryptography import x509

        return _facts(x509.load_pem_x509_certificate(pem))

    def covers(self, host: str) -> bool:
        """Whether it is one for this host name or address (RFC 9525 6.3)."""
        try:
            address = str(ip_address(host.partition("%")[0]))
        except ValueError:
            return any(_same_host(name, _a_label(host)) for name in self.names)
        return address in self.names

    def flaws(self, host: str | None = None, now: datetime | None = None) -> Iterator[tuple[str, str]]:
        """Yield what is wrong: a code, and a sentence. ``host``: the name that clients know the server by."""
        now = now or datetime.now(UTC)
        if now >= self.not_after:
            yield "certificate-expired", f"the certificate expired on {_date(self.not_after)}"
        elif now + SOON >= self.not_after:
            days = (self.not_after - now).days
            left = "in less than a day" if days < 1 else "in 1 day" if days == 1 else f"in {days} days"
            yield "certificate-expires-soon", f"the certificate expires {left}, on {_date(self.not_after)}"
        if now < self.not_before:
            yield "certificate-not-yet-valid", f"the certificate is valid only from {_date(self.not_before)}"
        if host is not None and not self.covers(host):
            names = ", ".join(self.names) or "no name"
            yield "certificate-wrong-name", f"the certificate is not for {host}, but for {names}"

    def as_json(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        return {
            "subject": self.subject,
            "issuer": self.issuer,
            "names": list(self.names),
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
            "self_signed": self.self_signed,
        }


def _facts(certificate: x509.Certificate) -> Certificate:
    return Certificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=_names(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        self_signed=certificate.issuer == certificate.subject,
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = (str(address) for address in found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _same_host(pattern: str, host: str) -> bool:
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    # RFC 9525 6.3: the wildcard stands for the whole of the left-most label, and for one label alone.
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:] and not host.startswith(".")
    return host == pattern


def _a_label(host: str) -> str:
    if host.isascii():
        return host
    import idna

    try:
        return idna.encode(host, uts46=True).decode()
    except idna.IDNAError:
        return host


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
