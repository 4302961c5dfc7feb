"""The service extensions that the server has of its own (RFC 5321 2.2): which there are, and what each is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pillarbox.extension import Extension, Parameter
from pillarbox.smtp import delivery, dsn, params
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
    yield Extension(_limits(o))  # RFC 9422
    yield Extension(None if o.hide_enhanced_status_codes else "ENHANCEDSTATUSCODES")  # RFC 2034
    yield _dsn(o)
    yield from _delivery(o)
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
    # RFC 6531 3.1: "Servers offering this extension MUST provide support for, and announce, the 8BITMIME extension".
    yield Extension(None if o.hide_smtputf8 or o.hide_8bitmime else "SMTPUTF8", mail={"SMTPUTF8": utf8})
    yield Extension(None if o.hide_chunking else "CHUNKING", [BDAT_COMMAND])  # RFC 3030 2
    yield Extension("BINARYMIME" if o.binarymime else None)  # RFC 3030 3


def _limits(o: Options) -> str | None:
    limits = [("MAILMAX", o.max_messages), ("RCPTMAX", o.max_recipients)]
    known = [f"{name}={number}" for name, number in limits if number is not None]
    return None if o.hide_limits or not known else " ".join(["LIMITS", *known])


def _dsn(o: Options) -> Extension:
    # RFC 3461. Hidden, its parameters are not interpreted.
    if o.hide_dsn:
        raw = Parameter(params.keep)
        return Extension(mail={"RET": raw, "ENVID": raw}, rcpt={"NOTIFY": raw, "ORCPT": raw})
    return Extension(
        "DSN",
        mail={"RET": Parameter(dsn.ret), "ENVID": Parameter(dsn.envid)},
        rcpt={"NOTIFY": Parameter(dsn.notify), "ORCPT": Parameter(dsn.orcpt)},
    )


def _delivery(o: Options) -> Iterator[Extension]:
    """Yield what says when a message is to be delivered; each is off unless its option is set."""
    if o.deliver_by is not False:  # RFC 2852
        # RFC 2852 4: the parameter of the keyword is the least time that is accepted with R.
        keyword = "DELIVERBY" if o.deliver_by is True else f"DELIVERBY {o.deliver_by}"
        yield Extension(keyword, mail={"BY": Parameter(delivery.deliver_by)})
    longest = o.future_release
    if longest is not None:  # RFC 4865
        hold = {"HOLDFOR": Parameter(delivery.hold_for), "HOLDUNTIL": Parameter(delivery.hold_until)}
        yield Extension(lambda _: delivery.future_release(longest), mail=hold)
    if o.mt_priority is not False:  # RFC 6710
        keyword = "MT-PRIORITY" if o.mt_priority is True else f"MT-PRIORITY {o.mt_priority}"
        yield Extension(keyword, mail={"MT-PRIORITY": Parameter(delivery.mt_priority)})
    if o.rrvs:  # RFC 7293
        yield Extension("RRVS", rcpt={"RRVS": Parameter(delivery.rrvs)})


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
        # RFC 8689 2: "Following the negotiation of STARTTLS, the SMTP server MUST advertise in the subsequent EHLO
        # response that it supports REQUIRETLS."
        return "REQUIRETLS" if session.secure else None

    # RFC 4954 5: "servers that advertise support for this extension MUST support the AUTH parameter to the MAIL FROM
    # command even when the client has not authenticated itself to the server."
    submitter = {} if b"AUTH" in service.disabled else {"AUTH": Parameter(params.auth)}
    yield Extension(mechanisms, [AUTH_COMMAND], mail=submitter)
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
