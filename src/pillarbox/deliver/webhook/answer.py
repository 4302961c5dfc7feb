"""What the endpoint answers becomes what the client is told: the table from HTTP status to SMTP reply stands here.

Nothing of an answer reaches the client but a ``reply`` that the endpoint wrote for it. A wrong URL, a wrong password or
a server in trouble bounces no message: the client is told to come again, and the log says what is wrong.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, ValidationError, model_validator

from pillarbox import Reject
from pillarbox.deliver import unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox import Recipient

__all__ = ["ANSWER_SIZE", "Answer", "NotUnderstood", "answers", "is_passing", "refusal_for"]

ANSWER_SIZE = 64 * 1024  # octets of an answer's body that are looked at

# RFC 9110 15: what says of this very message that it will not do, now or later. All others are trouble of ours.
_REFUSED = (554, "Error: the message was refused", "5.6.0")
_REFUSALS = {
    400: _REFUSED,
    406: _REFUSED,
    410: (550, "Error: mailbox disabled, not accepting messages", "5.2.1"),
    413: (552, "Error: message too large", "5.3.4"),
    415: (554, "Error: the message has media that are not supported here", "5.6.1"),
    422: _REFUSED,
    507: (452, "Error: insufficient system storage, try again later", "4.3.1"),
}
# The next request may find better times. All others stay as they are until somebody changes something.
_PASSING = {408, 425, 429, 500, 502, 503, 504, 507, *range(520, 525)}


class NotUnderstood(ValueError):
    """An answer has a ``reply`` or ``recipients`` that says nothing; the text is for the log."""


def is_passing(status: int) -> bool:
    """Whether the same request may soon be answered otherwise."""
    return status in _PASSING


def refusal_for(status: int) -> Reject:
    """Return the refusal for a status that is no success."""
    if status not in _REFUSALS:
        return unavailable()
    code, text, enhanced = _REFUSALS[status]
    return Reject(code, text, enhanced=enhanced)


class Reply(BaseModel):
    """A reply in the endpoint's own words: 2xx accepts, 4xx and 5xx refuse."""

    code: Annotated[int, Field(strict=True, ge=200, le=599)]
    text: Annotated[str, Field(max_length=1000)] = ""
    enhanced: Annotated[str, Field(pattern=r"^[245]\.[0-9]{1,3}\.[0-9]{1,3}$")] | None = None

    @model_validator(mode="after")
    def _is_of_this_step(self) -> Reply:
        # 3xx asks for more; RFC 5321 3.8: 421 closes the connection, which is not the endpoint's to decide.
        if 300 <= self.code <= 399 or self.code == 421:
            raise ValueError(f"code {self.code} is no reply to a message")
        if self.enhanced is not None and self.enhanced[0] != str(self.code)[0]:
            raise ValueError(f"enhanced code {self.enhanced} does not belong to {self.code}")
        return self

    def outcome(self, place: str) -> str | Reject:
        """Return the place for an acceptance, else the refusal."""
        if self.code < 300:
            return place
        text = self.text or (unavailable().text if self.code < 500 else _REFUSED[1])
        return Reject(self.code, text, enhanced=self.enhanced)


class Answer(BaseModel):
    """What an endpoint may say in JSON: a reply for all recipients, and replies for some."""

    reply: Reply | None = None
    recipients: dict[str, Reply] = {}

    @classmethod
    def from_body(cls, body: bytes, content_type: str) -> Answer:
        """Return what a body says; nothing where it is no JSON object. Raises NotUnderstood."""
        if not re.fullmatch(r"application/([\w.+-]+\+)?json", content_type) or len(body) > ANSWER_SIZE:
            return cls()
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            if not first["loc"]:  # no JSON, or no object
                return cls()
            place = ".".join(str(part) for part in first["loc"][:1])
            raise NotUnderstood(f"{place}: {first['msg']}") from None

    @property
    def is_silent(self) -> bool:
        """Whether the status alone counts."""
        return self.reply is None and not self.recipients


def answers(status: int, answer: Answer, recipients: Sequence[Recipient], place: str) -> list[str | Reject]:
    """Return for each recipient the place, or the refusal. Raises NotUnderstood."""
    own = {address.lower(): reply for address, reply in answer.recipients.items()}
    if unknown := own.keys() - {recipient.address.lower() for recipient in recipients}:
        raise NotUnderstood(f"recipients: {len(unknown)} of them are no recipients of the message")
    success = 200 <= status <= 299
    if not success and any(reply.code < 300 for reply in (*own.values(), *([answer.reply] if answer.reply else []))):
        raise NotUnderstood(f"a reply accepts what status {status} refuses")
    common = answer.reply.outcome(place) if answer.reply else place if success else refusal_for(status)
    return [own[to.address.lower()].outcome(place) if to.address.lower() in own else common for to in recipients]
