"""The JSON that a webhook sends: every field is declared and described here, and nowhere else.

The names of envelope and session are those of `Envelope` and `Session`. From these models come the schema
``docs/webhook.schema.json`` and the page ``docs/webhook-event.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from pillarbox.deliver.webhook.fields import addresses, clean, date, decoded
from pillarbox.deliver.webhook.mime import Content

if TYPE_CHECKING:
    from pillarbox import Address, Session
    from pillarbox.deliver import Message

__all__ = ["Event", "event_for"]


class _Model(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class EventPath(_Model):
    """An address of the envelope with the parameters that came with it."""

    address: str
    """The address; empty is the null sender."""
    args: dict[str, str | bool]
    """The parameters of MAIL or RCPT by their keyword in upper case; true for one without a value."""


class EventEnvelope(_Model):
    """What the client said in MAIL and RCPT."""

    mail_from: EventPath
    """Who sends it: where reports on its delivery go. It need not be the author."""
    rcpt_to: list[EventPath]
    """The recipients that this webhook is to take, in order; a message may have others, which other targets take."""
    body_type: Literal["7bit", "8bitmime", "binarymime"]
    """What BODY said of the message's octets."""
    smtp_utf8: bool
    """Whether SMTPUTF8 was given: addresses and header may be in UTF-8."""
    require_tls: bool
    """Whether REQUIRETLS was given: the message may only be handed on under TLS."""


class EventTLS(_Model):
    """The TLS of the connection."""

    version: str
    """For example `TLSv1.3`."""
    cipher: str
    """OpenSSL's name of the suite."""
    servername: str | None
    """The host name that the client asked for (SNI)."""
    authorized: bool
    """Whether the client gave a certificate that verified."""


class EventSession(_Model):
    """The connection that the message came by."""

    id: str
    """Names the connection in the log."""
    remote_address: str
    """The client's IP address; empty for a Unix socket."""
    remote_port: int
    """The client's port."""
    client_hostname: str
    """The client's name from the DNS, `[address]` without one. Not confirmed by a lookup in the other direction."""
    host_name_appears_as: str | None
    """What the client called itself in EHLO, HELO or LHLO: a mere claim."""
    local_address: str
    """The address of the listener."""
    local_port: int
    """The port of the listener."""
    transmission_type: str
    """The protocol as in a Received field (RFC 3848): `SMTP`, `ESMTP`, `ESMTPS`, `ESMTPSA`, `LMTP` and so on."""
    secure: bool
    """Whether the connection was under TLS, the server's own or a trusted proxy's."""
    tls: EventTLS | None
    """The server's own TLS; null without."""
    user: str | None
    """Who logged in by AUTH; null without."""


class EventMailbox(_Model):
    """A mailbox of a header field."""

    name: str
    """The display name, decoded; empty without one."""
    address: str
    """The address as it is written there: nobody has checked it."""


class EventAttachment(_Model):
    """A part of the message that is neither its `text` nor its `html`."""

    filename: str | None
    """The name that the sender gave it, decoded. Never use it as a path."""
    content_type: str
    """For example `image/png`, as the sender says."""
    charset: str | None
    """The charset that the sender says, in lower case."""
    disposition: str | None
    """`attachment`, `inline` or what else the sender says."""
    content_id: str | None
    """What HTML refers to as `cid:…`, without angle brackets."""
    encoding: str
    """How its octets are encoded in the message: `base64`, `quoted-printable`, `7bit`, `8bit`, `binary`."""
    offset: int
    """Where its body begins in the raw message, in octets."""
    size: int
    """How many octets its body has there, encoded."""


class EventMessage(_Model):
    """The raw message: the program's trace fields, and then every octet as it was sent, with line ends of CRLF."""

    size: int
    """Its size in octets."""
    sha256: str
    """Its SHA-256 in hexadecimal digits."""
    path: str | None
    """With `format = "reference"` the file that holds it, null else."""
    raw: str | None
    """With `format = "json"` the message in base64, null else."""


class EventData(_Model):
    """What is known of the message."""

    id: str
    """Session and transaction, as in the log and in the message's Received field."""
    envelope: EventEnvelope
    session: EventSession
    headers: list[tuple[str, str]]
    """The header fields as `[name, value]`, in order, unfolded, with encoded words (RFC 2047) decoded."""
    subject: str | None
    """The first Subject field, decoded."""
    from_: list[EventMailbox] = Field(alias="from")
    """The mailboxes of the From fields; none where they are malformed. Anybody can write anything there."""
    to: list[EventMailbox]
    """The mailboxes of the To fields. Who really gets the message is in `envelope.rcpt_to`."""
    cc: list[EventMailbox]
    """The mailboxes of the Cc fields."""
    reply_to: list[EventMailbox]
    """The mailboxes of the Reply-To field."""
    date: str | None
    """The Date field in the form of RFC 3339; null if there is none or it is no date."""
    message_id: str | None
    """The Message-ID field with its angle brackets."""
    text: str | None
    """The first part that is text/plain and no attachment, decoded, line ends LF."""
    html: str | None
    """The first part that is text/html and no attachment, decoded, line ends LF. Show it only in a sandbox."""
    attachments: list[EventAttachment]
    """All other parts, in order; parts of attached messages are not among them."""
    truncated: list[Literal["headers", "text", "html", "attachments"]]
    """Which of these fields are not complete because the message passes a limit."""
    message: EventMessage


class Event(_Model):
    """A message has arrived."""

    type: Literal["message.received"] = "message.received"
    """Tells this event from others that may come to the same address one day."""
    timestamp: datetime
    """When the message was whole, in UTC. It stays the same when the request is tried again."""
    data: EventData


# --- Made from a message


def event_for(message: Message, content: Content, raw: EventMessage) -> Event:
    """Return the event for a message that is whole."""
    data = EventData.model_validate(
        {
            "id": message.id,
            "envelope": _envelope(message),
            "session": _session(message.session),
            "headers": [(clean(name), decoded(value)) for name, value in content.headers],
            **_well_known(content.headers),
            "text": content.text,
            "html": content.html,
            "attachments": [asdict(attachment) for attachment in content.attachments],
            "truncated": sorted(content.truncated),
            "message": raw,
        }
    )
    return Event(timestamp=datetime.now(UTC), data=data)


def _envelope(message: Message) -> EventEnvelope:
    envelope = message.session.envelope
    return EventEnvelope(
        mail_from=_path(envelope.mail_from) if envelope.mail_from else EventPath(address="", args={}),
        rcpt_to=[_path(recipient) for recipient in message.recipients],
        body_type=envelope.body_type,
        smtp_utf8=envelope.smtp_utf8,
        require_tls=envelope.require_tls,
    )


def _path(path: Address) -> EventPath:
    # An extension of an application may have made an object of a parameter.
    args: dict[str, str | bool] = {
        name: value if value is True else clean(str(value)) for name, value in path.args.items()
    }
    return EventPath(address=clean(path.address), args=args)


def _session(session: Session) -> EventSession:
    tls = session.tls
    return EventSession(
        id=session.id,
        remote_address=session.remote_address,
        remote_port=session.remote_port,
        client_hostname=session.client_hostname,
        host_name_appears_as=session.host_name_appears_as,
        local_address=session.local_address,
        local_port=session.local_port,
        transmission_type=session.transmission_type,
        secure=session.secure,
        tls=EventTLS(version=tls.version, cipher=tls.cipher, servername=tls.servername, authorized=tls.authorized)
        if tls
        else None,
        user=session.user if isinstance(session.user, str) else session.username,
    )


def _well_known(headers: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Return the fields that receivers ask for most, by their name in `EventData`."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)
    lists = {name: _mailboxes(values.get(name.replace("_", "-"), [])) for name in ("from", "to", "cc", "reply_to")}
    first = {name: found[0] for name, found in values.items()}
    return {
        **lists,
        "subject": decoded(first["subject"]) if "subject" in first else None,
        "date": date(first.get("date", "")),
        "message_id": decoded(first["message-id"]) if "message-id" in first else None,
    }


def _mailboxes(values: list[str]) -> list[EventMailbox]:
    return [EventMailbox(name=name, address=address) for name, address in addresses(values)]
