"""Every option is declared here, once; all that shows, reads or checks options works from this table.

The constructor's keywords, ``Options.from_camel_case``, the configuration file, ``--set``, the JSON Schema and
the options page of the documentation are all made from the fields of ``Options``.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pillarbox import camelcase, optioncheck
from pillarbox.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    from pillarbox.counts import LimitCounts
    from pillarbox.extension import Extension
    from pillarbox.smtp.sasl import Mechanism

SERVER = "Server behaviour"
TLS = "TLS and security"
AUTHENTICATION = "Authentication"
EXTENSIONS = "SMTP extensions"
MESSAGES = "Commands and messages"
CONNECTIONS = "Connections"
LIMITS = "Limits"
PROXIES = "Proxies"
HANDLERS = "Handlers"
SECTIONS = (SERVER, TLS, AUTHENTICATION, EXTENSIONS, MESSAGES, CONNECTIONS, LIMITS, PROXIES, HANDLERS)

PEM = str | bytes | os.PathLike[str] | Sequence[str | bytes | os.PathLike[str]]
"""PEM text (it begins ``-----BEGIN``), PEM bytes, or the path of a file; or a list of these."""

Hook = Callable[..., Any]
TLSVersion = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
Self = TypeVar("Self", bound="Options")


class Resolver(Protocol):
    """What the option ``resolver`` takes."""

    async def reverse(self, ip: str) -> Sequence[str]:
        """Return the host names of an address (IPv4 or IPv6 as text); the first one is used.

        Raise or return none if it has none; an answer later than 1.5 s counts as none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the table says of one option besides its name, type and default."""

    section: str
    help: str
    reference: str | None = None  # its name in the reference system (camelCase)
    unit: str | None = None  # "s", "bytes", …
    scale: float = 1.0  # the reference's unit in ours: milliseconds are 0.001
    shown_default: str | None = None  # where the default is computed
    check: Callable[[str, Any], Any] | None = None  # (name, value) -> the value as it is kept
    in_code_only: bool = False  # a Python object: neither in TOML, nor --set, nor the schema


def _option(default: Any, section: str, help: str, **more: Any) -> Any:
    """Declare one option: a dataclass field that carries its ``Declaration``."""
    shown = not more.pop("secret", False)  # a secret never stands in a repr, so never in a log or a traceback
    metadata = {"option": Declaration(section, help, **more)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, repr=shown, metadata=metadata)


def _seconds(default: float | None, section: str, help: str, **more: Any) -> Any:
    more.setdefault("check", optioncheck.positive)
    return _option(default, section, help, unit="s", scale=0.001, **more)


def _hook(reference: str | None, help: str) -> Any:
    return _option(None, HANDLERS, help, reference=reference, in_code_only=True, check=optioncheck.hook)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a server or of one of its listeners, checked.

    Raises ConfigurationError for an unknown name, a wrong type or an impossible combination; it names the
    option. ``replace`` makes a copy with some options changed.
    """

    # --- Server behaviour
    name: str = _option(
        socket.gethostname,
        SERVER,
        "Host name in the greeting and in the EHLO reply.",
        reference="name",
        shown_default="the host's name",
        check=optioncheck.host_name,
    )
    banner: str = _option(
        "", SERVER, "Text behind `220 NAME ESMTP` in the greeting.", reference="banner", check=optioncheck.text
    )
    helo_response: str = _option(
        "%s Nice to meet you, %s",
        SERVER,
        "First line of the HELO, EHLO or LHLO reply; each `%s` in turn is the server's name, then the client's"
        " host name.",
        reference="heloResponse",
        check=optioncheck.text,
    )
    size: int | None = _option(
        None,
        SERVER,
        "Largest message. If set, SIZE is advertised and `MAIL FROM:<…> SIZE=n` is checked against it (RFC 1870).",
        reference="size",
        unit="bytes",
        check=optioncheck.positive,
    )
    hide_size: bool = _option(
        False,
        SERVER,
        "Advertise SIZE without the number; the limit still holds, and no reply reveals it.",
        reference="hideSize",
    )
    lmtp: bool = _option(
        False,
        SERVER,
        "Speak LMTP (RFC 2033): LHLO only, and one reply for each recipient after the data.",
        reference="lmtp",
    )
    logger: Any = _option(
        False,
        SERVER,
        "True logs to the console; an object with the standard logger's methods receives the records; False leaves"
        " them to the logger `pillarbox`, which is silent until it is configured.",
        reference="logger",
        check=optioncheck.logger,
    )
    component: str = _option("smtp-server", SERVER, "The `component` field of every log record.", reference="component")

    # --- TLS and security
    secure: bool = _option(
        False, TLS, "Implicit TLS: the handshake comes before the greeting (RFC 8314).", reference="secure"
    )
    needs_upgrade: bool = _option(
        False,
        TLS,
        "With `secure`: the accepted socket is plain and this connection starts TLS itself, before the greeting. That"
        " is how every implicit TLS connection is made here, also one handed in with `serve_socket`; the option"
        " states it, and refuses to be combined with `secured`.",
        reference="needsUpgrade",
    )
    secured: bool = _option(
        False,
        TLS,
        "With `secure`: TLS is already in place outside (a terminating proxy); no handshake here, and the session"
        " counts as secure.",
        reference="secured",
    )
    key: PEM | None = _option(
        None,
        TLS,
        "Private key: PEM text, bytes or path, or a list of these. Without key and certificate the server makes a"
        " self-signed certificate for localhost when it first needs one.",
        reference="key",
        check=optioncheck.pem,
        secret=True,
    )
    cert: PEM | None = _option(
        None,
        TLS,
        "Certificate chain: PEM text, bytes or path, or a list, each with the key of the same place.",
        reference="cert",
        check=optioncheck.pem,
    )
    ca: PEM | None = _option(
        None,
        TLS,
        "Authorities that client certificates are checked against; the system's where none are given.",
        reference="ca",
        check=optioncheck.pem,
    )
    key_password: str | None = _option(
        None, TLS, "Opens an encrypted private key.", reference="passphrase", secret=True
    )
    ciphers: str | None = _option(
        None,
        TLS,
        "OpenSSL cipher list for TLS 1.2 and older. Python cannot choose the suites of TLS 1.3: those stay OpenSSL's.",
        reference="ciphers",
    )
    minimum_tls_version: TLSVersion = _option(
        "TLSv1.2",
        TLS,
        "Oldest version that is let in: TLSv1, TLSv1.1, TLSv1.2 or TLSv1.3. Below TLSv1.2 is for old printers and"
        " devices, and lowers OpenSSL's security level with it.",
        reference="minVersion",
    )
    request_cert: bool = _option(
        False,
        TLS,
        "Ask the client for a certificate, on implicit TLS and after STARTTLS.",
        reference="requestCert",
    )
    reject_unauthorized: bool = _option(
        True,
        TLS,
        "With `request_cert`: True requires a certificate that verifies. False lets in a client with none, and"
        " `session.tls.authorized` tells which; one that does not verify still fails the handshake, since Python's"
        " ssl cannot admit it.",
        reference="rejectUnauthorized",
    )
    sni_options: Mapping[str, Mapping[str, Any]] | None = _option(
        None,
        TLS,
        "Certificate for each server name: host → {key, cert, ca}, on implicit TLS and after STARTTLS. Names compare in"
        " lower case, IDNA-normalised.",
        reference="sniOptions",
        secret=True,
        check=optioncheck.sni_options,
    )
    sni_callback: Hook | None = _option(
        None,
        TLS,
        "Plain function from the server name to the `ssl.SSLContext` for it, or to None for the default.",
        reference="SNICallback",
        in_code_only=True,
        check=optioncheck.plain_function,
    )
    ssl_context: ssl.SSLContext | None = _option(
        None,
        TLS,
        "A context of one's own in the place of key, cert, ca, ciphers and the rest.",
        in_code_only=True,
        check=optioncheck.ssl_context,
    )
    handshake_timeout: float | None = _seconds(
        30.0, TLS, "How long a TLS handshake may take; then the connection is closed.", reference="handshakeTimeout"
    )
    hide_starttls: bool = _option(
        False,
        TLS,
        "STARTTLS works but is not advertised, and AUTH does not wait for it.",
        reference="hideSTARTTLS",
    )
    allow_insecure_auth: bool = _option(False, TLS, "Permit AUTH before TLS.", reference="allowInsecureAuth")

    # --- Authentication
    auth_methods: Sequence[str | Mechanism] = _option(
        ("LOGIN", "PLAIN"),
        AUTHENTICATION,
        "SASL mechanisms offered, in this order: PLAIN, LOGIN, CRAM-MD5, XOAUTH2, OAUTHBEARER, SCRAM-SHA-1,"
        " SCRAM-SHA-256, the same with -PLUS, EXTERNAL, ANONYMOUS; in a program also `Mechanism` objects of your own."
        " See [authentication](authentication.md).",
        reference="authMethods",
        check=optioncheck.auth_methods,
    )
    auth_optional: bool = _option(False, AUTHENTICATION, "Mail without AUTH is allowed.", reference="authOptional")
    auth_required_message: str = _option(
        "Error: authentication Required",
        AUTHENTICATION,
        "Text of the 530 reply to mail before AUTH.",
        reference="authRequiredMessage",
        check=optioncheck.text,
    )
    max_allowed_unauthenticated_commands: int | Literal[False] = _option(
        10,
        AUTHENTICATION,
        "So many commands are served before AUTH, the next gets 421. AUTH, its lines and QUIT do not count; it applies"
        " only where AUTH is required. False: no limit.",
        reference="maxAllowedUnauthenticatedCommands",
        check=optioncheck.positive,
    )

    # --- SMTP extensions
    disabled_commands: Sequence[str] = _option(
        (),
        EXTENSIONS,
        "These verbs answer as unknown and their extension is not advertised. Without AUTH nobody needs to"
        " authenticate; without STARTTLS nobody needs TLS before AUTH.",
        reference="disabledCommands",
        check=optioncheck.verbs,
    )
    hide_pipelining: bool = _option(
        False, EXTENSIONS, "Do not advertise PIPELINING (RFC 2920).", reference="hidePIPELINING"
    )
    hide_8bitmime: bool = _option(False, EXTENSIONS, "Do not advertise 8BITMIME (RFC 6152).", reference="hide8BITMIME")
    hide_smtputf8: bool = _option(False, EXTENSIONS, "Do not advertise SMTPUTF8 (RFC 6531).", reference="hideSMTPUTF8")
    hide_enhanced_status_codes: bool = _option(
        True,
        EXTENSIONS,
        "Neither advertise enhanced status codes (RFC 2034) nor put them into replies.",
        reference="hideENHANCEDSTATUSCODES",
    )
    hide_dsn: bool = _option(
        True,
        EXTENSIONS,
        "Do not advertise DSN (RFC 3461); RET, ENVID, NOTIFY and ORCPT are accepted and left raw in `args`.",
        reference="hideDSN",
    )
    hide_requiretls: bool = _option(
        True,
        EXTENSIONS,
        "Do not advertise REQUIRETLS (RFC 8689); it is only ever advertised under TLS.",
        reference="hideREQUIRETLS",
    )

    hide_chunking: bool = _option(
        False, EXTENSIONS, "Do not advertise CHUNKING (RFC 3030). To do without BDAT disable it in `disabled_commands`."
    )
    binarymime: bool = _option(
        False,
        EXTENSIONS,
        "Offer BINARYMIME (RFC 3030): with BODY=BINARYMIME a message may hold any octets, NUL and lines of any form,"
        " and comes by BDAT.",
    )
    deliver_by: bool | int = _option(
        False,
        EXTENSIONS,
        "Offer DELIVERBY (RFC 2852): MAIL may say by when a message is to be delivered (`envelope.deliver_by`). A"
        " number is the least time in seconds that is accepted with R (return what is late), and is announced.",
        check=optioncheck.deliver_by,
    )
    future_release: int | None = _option(
        None,
        EXTENSIONS,
        "Offer FUTURERELEASE (RFC 4865): MAIL may say how long or until when a message is to be held"
        " (`envelope.hold_until`), up to so far from now.",
        unit="s",
        check=optioncheck.nine_digits,
    )
    mt_priority: bool | str = _option(
        False,
        EXTENSIONS,
        "Offer MT-PRIORITY (RFC 6710): MAIL may say how urgent a message is (`envelope.mt_priority`). A string is the"
        " name of the priority profile that is announced (`MIXER`, `STANAG4406`, `NSEP`).",
        check=optioncheck.profile,
    )
    rrvs: bool = _option(
        False,
        EXTENSIONS,
        "Offer RRVS (RFC 7293): RCPT may say since when a mailbox must have had the same owner (`recipient.rrvs`).",
    )
    hide_limits: bool = _option(
        False, EXTENSIONS, "Do not advertise LIMITS (RFC 9422): `max_recipients` and `max_messages`."
    )
    extensions: Sequence[Extension] = _option(
        (),
        EXTENSIONS,
        "Extensions of your own: `Extension` objects with EHLO keywords, verbs and parameters of MAIL and RCPT.",
        in_code_only=True,
        check=optioncheck.extensions,
    )

    # --- Commands and messages
    max_command_length: int = _option(
        4096,
        MESSAGES,
        "Longest command line with its CRLF. AUTH and the lines that follow it may have 12,288 bytes.",
        reference="maxCommandLength",
        unit="bytes",
        check=optioncheck.command_length,
    )
    lenient_address_parsing: bool = _option(
        False,
        MESSAGES,
        "Accept malformed domains and local parts with misplaced dots.",
        reference="lenientAddressParsing",
    )
    lenient_parameters: bool = _option(
        False, MESSAGES, "Accept unknown MAIL and RCPT parameters (left raw in `args`) instead of 555."
    )
    bare_newline: Literal["normalize", "reject", "accept"] = _option(
        "normalize",
        MESSAGES,
        "What a line feed without carriage return, or the reverse, means. normalize: a bare LF counts as CRLF but never"
        " ends the data, a bare CR becomes a space. reject: the message gets 550 and the connection is closed."
        " accept: the content stays untouched.",
    )
    forbid_unauth_pipelining: bool = _option(
        True,
        MESSAGES,
        "Input that waits behind HELO, EHLO, AUTH, STARTTLS or DATA is answered 554 and the connection closed (RFC 2920"
        " 3.1).",
    )
    enforce_size: bool = _option(
        True,
        MESSAGES,
        "A message that crosses `size` raises MessageTooLarge in the handler and is answered 552. False: only"
        " `stream.size_exceeded` tells.",
    )

    # --- Connections
    greet_delay: float = _seconds(
        0.0,
        CONNECTIONS,
        "Wait so long before the greeting, to catch clients that talk too soon.",
        check=optioncheck.not_negative,
    )
    socket_timeout: float | None = _seconds(
        60.0,
        CONNECTIONS,
        "Silence of the client after which it gets 421 and is closed. Time spent in a handler does not count.",
        reference="socketTimeout",
    )
    close_timeout: float | None = _seconds(
        30.0,
        CONNECTIONS,
        "How long `close()` lets running transactions finish before they get 421.",
        reference="closeTimeout",
        check=optioncheck.not_negative,
    )
    handler_timeout: float | None = _seconds(
        None,
        CONNECTIONS,
        "How long one call of a handler may take; longer is a failure of that handler (451; on_connect and on_secure"
        " 421, on_auth 454). Waiting for the client's data does not count. Only an awaited handler can be interrupted.",
    )
    disable_reverse_lookup: bool = _option(
        False,
        CONNECTIONS,
        "No PTR query; the client's host name is then `[address]`.",
        reference="disableReverseLookup",
    )
    resolver: Resolver | None = _option(
        None,
        CONNECTIONS,
        "An object with `async reverse(ip: str) -> Sequence[str]` that replaces the DNS. A failure, an empty or a slow"
        " answer (1.5 s) gives `[address]`.",
        reference="resolver",
        in_code_only=True,
        check=optioncheck.resolver,
    )

    # --- Limits
    max_clients: int | None = _option(
        None,
        LIMITS,
        "Above so many connections a new one gets 421 and is closed (on implicit TLS it is just closed). None: as many"
        " as there are descriptors for.",
        reference="maxClients",
        check=optioncheck.positive,
    )
    max_clients_per_address: int | None = _option(
        None,
        LIMITS,
        "Above so many connections from one address (IPv6: from one /64 network) a new one gets 421 and is closed (on"
        " implicit TLS it is just closed). Not behind a proxy that tells no addresses, where all clients have one.",
        check=optioncheck.positive,
    )
    max_recipients: int | None = _option(
        1000,
        LIMITS,
        "So many recipients may one message have; one more gets 452. Advertised as RCPTMAX of LIMITS.",
        check=optioncheck.six_digits,
    )
    max_messages: int | None = _option(
        None,
        LIMITS,
        "So many transactions may one connection have; MAIL for one more gets 421 and is the end of it. Advertised as"
        " MAILMAX of LIMITS.",
        check=optioncheck.six_digits,
    )
    max_errors: int | None = _option(
        10,
        LIMITS,
        "So many errors of syntax or protocol (unknown verbs too) without an accepted message between end a connection:"
        " the last of them gets 421. What your handlers refuse is no error.",
        check=optioncheck.positive,
    )
    max_junk_commands: int | None = _option(
        100,
        LIMITS,
        "So many commands that bring no message nearer may come without one (NOOP, RSET, VRFY, EXPN, HELP, a second"
        " EHLO, an empty chunk, a refused command that is no error); the next gets 421.",
        check=optioncheck.positive,
    )
    max_refused_recipients: int | None = _option(
        100,
        LIMITS,
        "After so many refused recipients without an accepted message further ones are not looked at: 421, or 452 where"
        " the transaction has recipients that would be lost. It slows those who guess addresses.",
        check=optioncheck.positive,
    )
    max_auth_failures: int | None = _option(
        3,
        LIMITS,
        "So many logins may fail in one connection; AUTH after that gets 421.",
        check=optioncheck.positive,
    )
    auth_failure_delay: float = _seconds(
        1.0,
        LIMITS,
        "A failed login is answered so much later; each further one of the connection twice as late as the one before,"
        " up to 30 seconds.",
        check=optioncheck.not_negative,
    )
    command_timeout: float | None = _seconds(
        60.0, LIMITS, "How long one command, or one line of AUTH, may take from its first byte to its end; then 421."
    )
    reply_timeout: float | None = _seconds(
        60.0, LIMITS, "How long a client may leave replies unread that no longer fit its connection; then it is closed."
    )
    min_data_rate: int | None = _option(
        100,
        LIMITS,
        "A message that comes slower, on the average of `socket_timeout` (of 60 s where there is none), gets 421. Only"
        " the time in which the client is waited for counts.",
        unit="bytes/s",
        check=optioncheck.positive,
    )
    max_session_duration: float | None = _seconds(
        None, LIMITS, "How long a connection may last; then it gets 421, also within a message."
    )
    rates_per_address: Mapping[str, str] | None = _option(
        None,
        LIMITS,
        "What one address (IPv6: one /64 network) may do in a time: `connections`, `messages`, `recipients`,"
        ' `auth_failures`, `errors`, each as `"60/minute"`. See [limits](limits.md); needs the extra `rates`.',
        check=optioncheck.client_rates,
    )
    rates_per_account: Mapping[str, str] | None = _option(
        None,
        LIMITS,
        "What one account may do in a time, whatever its address: `messages`, `recipients`, `auth_failures`.",
        check=optioncheck.account_rates,
    )
    rates_over_all: Mapping[str, str] | None = _option(
        None,
        LIMITS,
        "What all clients together may do in a time: as `rates_per_address`.",
        check=optioncheck.client_rates,
    )
    rate_store: str = _option(
        "memory",
        LIMITS,
        "Where rates are counted: `memory`, in this process or by `limit_counts`, or `redis://host:port/db` for several"
        " that share them (needs the extra `redis`).",
        check=optioncheck.rate_store,
        secret=True,
    )
    limit_counts: LimitCounts | None = _option(
        None,
        LIMITS,
        "A `LimitCounts` for several servers that are to have `max_clients`, `max_clients_per_address` and the rates"
        " in memory together. None: they hold for this server alone. See [limits](limits.md#several-servers).",
        in_code_only=True,
        check=optioncheck.limit_counts,
    )
    unlimited_hosts: Sequence[str] = _option(
        (),
        LIMITS,
        "Peers (addresses or networks) for whom neither `max_clients_per_address` nor `rates_per_address` holds, and"
        " who do not count for `rates_over_all`: your own servers, and proxies.",
        check=optioncheck.networks,
    )

    # --- Proxies
    use_proxy: bool | Sequence[str] = _option(
        False,
        PROXIES,
        "These peers (addresses or networks; `*` or True: all) must begin with a PROXY header, version 1 or 2.",
        reference="useProxy",
        check=optioncheck.networks,
    )
    proxy_timeout: float | None = _seconds(5.0, PROXIES, "How long the PROXY header may take to arrive.")
    ignored_hosts: Sequence[str] = _option(
        (),
        PROXIES,
        "Peers (addresses or networks, as they are after the PROXY header) that are neither logged nor counted and"
        " reach no `on_connect` or `on_close`: health checks.",
        reference="ignoredHosts",
        check=optioncheck.networks,
    )
    use_xclient: bool | Sequence[str] = _option(
        False,
        PROXIES,
        "These peers may use XCLIENT. A bare True trusts every client and is warned of.",
        reference="useXClient",
        check=optioncheck.networks,
    )
    use_xforward: bool | Sequence[str] = _option(
        False,
        PROXIES,
        "These peers may use XFORWARD. A bare True trusts every client and is warned of.",
        reference="useXForward",
        check=optioncheck.networks,
    )

    # --- Handlers
    on_connect: Hook | None = _hook("onConnect", "`on_connect(session)`, before the greeting.")
    on_secure: Hook | None = _hook("onSecure", "`on_secure(tls, session)`, after each TLS handshake.")
    on_ehlo: Hook | None = _hook(
        None, "`on_ehlo(keywords, session)`, on HELO, EHLO and LHLO: what is announced may be changed."
    )
    on_auth: Hook | None = _hook("onAuth", "`on_auth(auth, session)`: a complete credential arrived.")
    on_scram: Hook | None = _hook(
        None, "`on_scram(username, session)`: SCRAM asks for the keys that are stored for a user."
    )
    on_mail_from: Hook | None = _hook("onMailFrom", "`on_mail_from(address, session)`, on MAIL.")
    on_rcpt_to: Hook | None = _hook("onRcptTo", "`on_rcpt_to(address, session)`, on each RCPT.")
    on_data: Hook | None = _hook("onData", "`await on_data(stream, session)`: a message arrives.")
    on_reset: Hook | None = _hook(None, "`on_reset(session)`, on RSET, before the transaction is forgotten.")
    on_vrfy: Hook | None = _hook(None, "`on_vrfy(address, session)`, on VRFY.")
    on_expn: Hook | None = _hook(None, "`on_expn(name, session)`, on EXPN; without it the verb is unknown.")
    on_help: Hook | None = _hook(None, "`on_help(topic, session)`, on HELP.")
    on_close: Hook | None = _hook("onClose", "`on_close(session)`: the connection is gone.")
    on_error: Hook | None = _hook(
        "onError", "`on_error(error, session)`: a socket, TLS or handler failure; logged by default."
    )

    def __new__(cls, **given: Any) -> Options:
        """Refuse an unknown name with the likely spelling, before dataclass says less."""
        optioncheck.names(given, "option")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        optioncheck.types(self)
        for name, declaration in declarations().items():
            if declaration.check is not None:
                kept = declaration.check(name, getattr(self, name))
                object.__setattr__(self, name, kept)
        optioncheck.combinations(self)

    def replace(self: Self, **changes: Any) -> Self:
        """Return a copy with some options changed, checked again. Raises ConfigurationError."""
        optioncheck.names(changes, "option")
        return dataclasses.replace(self, **changes)

    @classmethod
    def make(cls: type[Self], given: Options | Mapping[str, Any] | None = None, /, **overrides: Any) -> Self:
        """Make options from another ``Options``, a mapping or nothing, with overrides. Raises ConfigurationError."""
        if isinstance(given, Options):
            base = {name: getattr(given, name) for name in declarations()}
        elif isinstance(given, Mapping) or given is None:
            base = dict(given or {})
        else:
            raise ConfigurationError(f"options must be Options or a mapping, not {type(given).__name__}")
        base.update(overrides)
        optioncheck.names(base, "option")
        return cls(**base)

    @classmethod
    def from_camel_case(cls: type[Self], mapping: Mapping[str, Any]) -> Self:
        """Take the reference system's names and milliseconds as they are.

        There 0, false, "" and an empty list mean the default or "none", a single value stands for a list
        of one, and method names compare without case. Handlers in it have the signatures of this library.
        Raises ConfigurationError.
        """
        return cls(**camelcase.from_reference(mapping))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of the options that a file can hold."""
        return optioncheck.json_schema()

    @cached_property
    def must_authenticate(self) -> bool:
        """Mail needs AUTH first: it is neither optional nor disabled."""
        return not self.auth_optional and "AUTH" not in self.disabled_commands

    @cached_property
    def auth_needs_tls(self) -> bool:
        """AUTH waits for TLS, because TLS can be had: STARTTLS is neither hidden nor disabled."""
        starttls = not self.hide_starttls and "STARTTLS" not in self.disabled_commands
        return starttls and not self.allow_insecure_auth


@lru_cache(maxsize=1)
def declarations() -> dict[str, Declaration]:
    """Return name → declaration for every option, in the order of the table."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(Options)}
