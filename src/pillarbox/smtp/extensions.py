"""The service extensions that the server has of its own (RFC 5321 2.2): which there are, and what each is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pillarbox.extension import Extension, Parameter
from pillarbox.smtp import params
from pillarbox.smtp.commands import (
    AUTH_COMMAND,
    BDAT_COMMAND,
    EXPN_COMMAND,
    STARTTLS_COMMAND,
    XCLIENT_COMMAND,
    XFORWARD_COMMAND,
)

if TYPE_CHECKING:
    from pillarbox.options import Options
    from pillarbox.session import Session
    from pillarbox.smtp.service import Service


def built_in(service: Service) -> Iterator[Extension]:
    """Yield the server's own extensions as its options have them, in the order in which EHLO announces them."""
    o = service.options
    yield Extension(None if o.hide_pipelining else "PIPELINING")  # RFC 2920
    yield from _content(o)
    yield Extension(None if o.hide_enhanced_status_codes else "ENHANCEDSTATUSCODES")  # RFC 2034
    yield _dsn(o)
    yield from _security(service)
    yield _size(service)
    yield from _proxies(service)
    # RFC 5321 4.1.1.1 lets a server announce its optional verbs.
    yield Extension("VRFY" if service.hooks["on_vrfy"] is not None else None)
    if service.hooks["on_expn"] is not None:
        yield Extension("EXPN", [EXPN_COMMAND])
    yield Extension("HELP" if service.hooks["on_help"] is not None else None)


def _content(o: Options) -> Iterator[Extension]:
    """Yield what says how a message is sent and what it holds."""
    yield Extension(None if o.hide_8bitmime else "8BITMIME", mail={"BODY": Parameter(params.body)})  # RFC 6152
    utf8 = Parameter(params.smtputf8, takes_value=False)
    yield Extension(None if o.hide_smtputf8 else "SMTPUTF8", mail={"SMTPUTF8": utf8})  # RFC 6531
    yield Extension(None if o.hide_chunking else "CHUNKING", [BDAT_COMMAND])  # RFC 3030 2
    yield Extension("BINARYMIME" if o.binarymime else None)  # RFC 3030 3


def _dsn(o: Options) -> Extension:
    # RFC 3461. Hidden, its parameters are not interpreted.
    if o.hide_dsn:
        raw = Parameter(params.keep)
        return Extension(mail={"RET": raw, "ENVID": raw}, rcpt={"NOTIFY": raw, "ORCPT": raw})
    return Extension(
        "DSN",
        mail={"RET": Parameter(params.ret), "ENVID": Parameter(params.envid)},
        rcpt={"NOTIFY": Parameter(params.notify), "ORCPT": Parameter(params.orcpt)},
    )


def _security(service: Service) -> Iterator[Extension]:
    o = service.options

    def mechanisms(session: Session) -> str | None:
        # RFC 4954 4: after a successful AUTH there is no other; and it is announced only where it would be accepted.
        if session.user is not None or not service.may_auth(session):
            return None
        names = service.mechanism_names(session)
        return "AUTH " + " ".join(names) if names else None

    def starttls(session: Session) -> str | None:
        # RFC 3207 4.2: "must not" be announced once TLS is there
        return None if session.secure else "STARTTLS"

    def require_tls(session: Session) -> str | None:
        # RFC 8689 4: advertised only where the session is under TLS.
        return "REQUIRETLS" if session.secure else None

    yield Extension(mechanisms, [AUTH_COMMAND], mail={"AUTH": Parameter(params.auth)})  # RFC 4954
    yield Extension(None if o.hide_starttls else starttls, [STARTTLS_COMMAND])  # RFC 3207
    flag = Parameter(params.require_tls, takes_value=False)
    yield Extension(None if o.hide_requiretls else require_tls, mail={"REQUIRETLS": flag})


def _size(service: Service) -> Extension:
    o = service.options
    # RFC 1870 3: the number is optional, "0" would mean that no limit is in force.
    announced = None if o.size is None else "SIZE" if o.hide_size else f"SIZE {o.size}"
    return Extension(
        announced, mail={"SIZE": Parameter(lambda asked, value: params.size(asked, value, service.too_large))}
    )


def _proxies(service: Service) -> Iterator[Extension]:
    """Yield what listed clients may say of others; announced to these alone."""

    def xclient(session: Session) -> str | None:
        attributes = "NAME REVERSE_NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
        return f"XCLIENT {attributes}" if service.may_xclient(session) else None

    def xforward(session: Session) -> str | None:
        return "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" if service.may_xforward(session) else None

    yield Extension(xclient if service.xclient_peers else None, [XCLIENT_COMMAND])
    yield Extension(xforward if service.xforward_peers else None, [XFORWARD_COMMAND])
