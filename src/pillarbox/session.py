"""What is known of one connection and its transaction: the session owns it, everything else asks here."""

from __future__ import annotations

import os
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

BodyType = Literal["7bit", "8bitmime", "binarymime"]


@dataclass(frozen=True, slots=True)
class TLSInfo:
    """The facts of a finished TLS handshake.

    version: "TLSv1.3", "TLSv1.2" or, where let in, older. cipher: OpenSSL's name of the suite. servername: what the
    client asked for by SNI, None if nothing. peer_certificate: DER, None if the client sent none. authorized: the
    client sent a certificate and it verified. channel_bindings: what a login can be bound to (RFC 5929):
    "tls-server-end-point", where it is known which certificate was sent, and under TLS 1.2 "tls-unique".
    """

    version: str
    cipher: str
    servername: str | None = None
    peer_certificate: bytes | None = field(default=None, repr=False)
    authorized: bool = False
    channel_bindings: Mapping[str, bytes] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True, slots=True)
class ProxyTLS:
    """What a proxy says of TLS between the client and itself (PROXY version 2); None where it does not say.

    version: "TLSv1.3". cipher: OpenSSL's name of the suite. common_name and peer_certificate (DER): the client
    certificate's; they prove nothing unless ``authorized``. signature_algorithm ("SHA256") and key_algorithm
    ("RSA2048"): the proxy's certificate's. group and signature_scheme: as in the handshake. certificate_on_connection,
    certificate_in_session: the client gave one on this connection, or on an earlier one of the same TLS session.
    verify: OpenSSL's result for it, 0 for good. tlvs: what else came with it, as (type, value).
    """

    version: str | None = None
    cipher: str | None = None
    common_name: str | None = None
    signature_algorithm: str | None = None
    key_algorithm: str | None = None
    group: str | None = None
    signature_scheme: str | None = None
    peer_certificate: bytes | None = field(default=None, repr=False)
    certificate_on_connection: bool = False
    certificate_in_session: bool = False
    verify: int = 0
    tlvs: tuple[tuple[int, bytes], ...] = ()

    @property
    def authorized(self) -> bool:
        """Whether the client gave a certificate and the proxy verified it."""
        # 2.2.6: "The <verify> field will be zero if the client presented a certificate and it was successfully
        # verified, and non-zero otherwise." HAProxy has zero there without any certificate too.
        return self.verify == 0 and (self.certificate_on_connection or self.certificate_in_session)


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """What a PROXY header said beside the addresses, which the session has.

    version: 1 or 2. local: the connection is the proxy's own (LOCAL: a health check). authority: the host name that
    the client asked for, with TLS its SNI. unique_id: the proxy's own name for the connection, up to 128 octets.
    tls: None where the client came without. alpn: the protocol that TLS settled on. netns: the name of the network
    namespace. tlvs: all others as (type, value), in order; 0xEA is Amazon's, 0xEE Azure's.
    """

    version: Literal[1, 2]
    local: bool = False
    authority: str | None = None
    unique_id: bytes | None = None
    tls: ProxyTLS | None = None
    alpn: bytes | None = None
    netns: str | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class MessageDSN:
    """What MAIL asked of delivery reports (RFC 3461 4.3, 4.4): ``ret`` and ``envid``.

    None where not given, and always under ``hide_dsn``.
    """

    ret: Literal["FULL", "HDRS"] | None = None
    envid: str | None = None


@dataclass(frozen=True, slots=True)
class RecipientDSN:
    """What RCPT asked of delivery reports (RFC 3461 4.1, 4.2).

    notify: empty where not given, else ("NEVER",) or some of "SUCCESS", "FAILURE", "DELAY";
    orcpt: (address type, decoded address), for example ("rfc822", "a+b@example.com"). Both stay empty under
    ``hide_dsn``.
    """

    notify: tuple[str, ...] = ()
    orcpt: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """By when MAIL wants a message to be delivered (RFC 2852 4).

    seconds: from when the message was received; 0 and less with "notify" only. mode: what becomes of a message that is
    late: "return" it, or "notify" the sender and go on. trace: whoever relays it is to tell the sender.
    """

    seconds: int
    mode: Literal["notify", "return"]
    trace: bool = False


@dataclass(frozen=True, slots=True)
class RRVS:
    """Since when RCPT wants a mailbox to have had the same owner (RFC 7293 3).

    since: in UTC. action: what becomes of a message for a server that does not know RRVS: "reject" it, or "continue".
    """

    since: datetime
    action: Literal["continue", "reject"] = "reject"


# Nearly no message asks for any: one object does for all of them.
_NO_MESSAGE_DSN, _NO_RECIPIENT_DSN = MessageDSN(), RecipientDSN()


@dataclass(slots=True)
class Address:
    """A reverse path: ``address`` ("" is the null sender) and the parameters that came with it.

    ``args`` maps a parameter's keyword in upper case to its value, or to True for a flag; or to what an extension of
    the application's own has made of it.
    """

    address: str
    args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.address


@dataclass(slots=True)
class Recipient(Address):
    """A forward path: an address with its delivery report wishes in ``dsn``, and ``rrvs`` (RFC 7293) or None."""

    dsn: RecipientDSN = _NO_RECIPIENT_DSN
    rrvs: RRVS | None = None

    # dataclass(slots=True) makes __str__ of the base class fine, but not its __repr__: keep both plain.
    def __str__(self) -> str:
        return self.address


@dataclass(slots=True)
class Envelope:
    """One mail transaction: who sends it, to whom, and what MAIL said of it (RFC 5321 2.3.1).

    mail_from: None until MAIL is accepted. rcpt_to: the accepted recipients in order; in SMTP a repeated one replaces
    the earlier, in LMTP both stay (RFC 2033 4.2). body_type: BODY (RFC 6152, RFC 3030). smtp_utf8: SMTPUTF8 (RFC 6531).
    require_tls: REQUIRETLS (RFC 8689). dsn: RET and ENVID (RFC 3461).

    None where MAIL did not say: submitter, who submitted the message first ("" for ``<>``, and always "" for a client
    that has not logged in; AUTH, RFC 4954 5); deliver_by (RFC 2852); hold_until, in UTC (RFC 4865); mt_priority, from
    -9 to 9 (RFC 6710).
    """

    mail_from: Address | None = None
    rcpt_to: list[Recipient] = field(default_factory=list)
    body_type: BodyType = "7bit"
    smtp_utf8: bool = False
    require_tls: bool = False
    dsn: MessageDSN = _NO_MESSAGE_DSN
    submitter: str | None = None
    deliver_by: DeliverBy | None = None
    hold_until: datetime | None = None
    mt_priority: int | None = None


class Session:
    """One connection, from accept to close. The same object reaches every hook.

    What it says of the peer is what the network (or a trusted proxy) says, never what the client
    claims, except where a name says so (``host_name_appears_as``). Only ``state`` is the application's to write, and in
    ``on_auth`` ``username``.

    client_hostname: PTR name or "[ip]"; a Unix peer has address "", port 0 and the name "localhost". secure: under
    TLS, ours or a proxy's. proxy: what a PROXY header said, None without one. user: what ``on_auth`` returned, None
    before; username: the name the client authenticated with, unless ``on_auth`` has set it. transaction: 1, 2, and
    so on. error: the last reply of 400 or more as text, None before.
    """

    __slots__ = (
        "__weakref__",
        "_id",
        "_state",
        "_x_client",
        "_x_forward",
        "client_hostname",
        "envelope",
        "error",
        "host_name_appears_as",
        "ignored",
        "lmtp",
        "local_address",
        "local_port",
        "opening_command",
        "proxy",
        "remote_address",
        "remote_port",
        "secure",
        "servername",
        "tls",
        "transaction",
        "user",
        "username",
    )

    def __init__(
        self,
        *,
        remote_address: str = "",
        remote_port: int = 0,
        local_address: str = "",
        local_port: int = 0,
        secure: bool = False,
        lmtp: bool = False,
    ) -> None:
        self._id: str | None = None
        self.remote_address = remote_address
        self.remote_port = remote_port
        self.local_address = local_address
        self.local_port = local_port
        self.client_hostname = f"[{remote_address}]" if remote_address else "localhost"
        self.secure = secure
        self.lmtp = lmtp
        self.ignored = False  # one of `ignored_hosts`: nothing is logged of it
        self.servername: str | None = None
        self.tls: TLSInfo | None = None
        self.proxy: ProxyInfo | None = None
        self.opening_command: str | None = None
        self.host_name_appears_as: str | None = None
        self.user: Any = None
        self.username: str | None = None
        self.envelope = Envelope()
        self.transaction = 1
        self.error: str | None = None
        self._x_client: dict[str, str] | None = None
        self._x_forward: dict[str, str] | None = None
        self._state: dict[Any, Any] | None = None

    @property
    def id(self) -> str:
        """16 characters of base 32, unique; made when first asked for (2 µs that most connections save)."""
        if self._id is None:
            self._id = b32encode(os.urandom(10)).decode("ascii").lower()
        return self._id

    # Three dictionaries that most sessions never use: made on first use, they cost an idle one nothing.

    @property
    def x_client(self) -> dict[str, str]:
        """Decoded XCLIENT attributes; the values they replaced stand under ``"ADDR:DEFAULT"`` and so on."""
        if self._x_client is None:
            self._x_client = {}
        return self._x_client

    @property
    def x_forward(self) -> dict[str, str]:
        """Decoded XFORWARD attributes."""
        if self._x_forward is None:
            self._x_forward = {}
        return self._x_forward

    @x_forward.deleter
    def x_forward(self) -> None:
        self._x_forward = None

    @property
    def state(self) -> dict[Any, Any]:
        """The application's own notes; they last as long as the connection."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def transmission_type(self) -> str:
        """The "with" of a Received header (RFC 3848): SMTP, ESMTP, ESMTPS, ESMTPA, ESMTPSA, LMTP and so on."""
        # RFC 3848 1: "ESMTPS" is ESMTP with STARTTLS, "ESMTPA" with AUTH, "ESMTPSA" with both.
        if self.lmtp:
            base = "LMTP"
        elif self.opening_command == "EHLO":
            base = "ESMTP"
        else:
            return "SMTP"
        return base + ("S" if self.secure else "") + ("A" if self.user is not None else "")

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.transmission_type} {self.client_hostname} [{self.remote_address}]>"
