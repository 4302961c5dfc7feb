"""What can go wrong, by the names a user catches or raises: the one way to refuse is ``Reject``."""

from __future__ import annotations

# What is no failure of the function it came out of, but the end of the program (or of the coroutine that waits for it).
# All else that an application's function raises, also what is no Exception (asyncio.CancelledError, pytest's and trio's
# own), is a failure and harms one command.
PROGRAM_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


class ConfigurationError(ValueError):
    """An option has a wrong name, type or combination; the text names it and says what to do.

    option: the name of the option, None where it is not about one.
    """

    def __init__(self, text: str, option: str | None = None) -> None:
        super().__init__(text)
        self.option = option


class Reject(Exception):
    """Refuse what a hook was asked: ``raise Reject(550, "No such user", enhanced="5.1.1")``.

    code: reply code, 400-599 (400-499 "try again later", 500-599 "never"); None takes the hook's
        default. 421 also closes the connection (RFC 5321 3.8).
    text: reply text; None takes the default. Control characters are replaced before it is sent.
    enhanced: status code of RFC 3463 ("5.1.1"), sent where enhanced codes are not hidden.
    data: what a failed XOAUTH2 or OAUTHBEARER exchange tells the client, as JSON.

    Raises ValueError for a code outside 400-599 or a malformed enhanced code, TypeError for a text that is no string.
    """

    def __init__(
        self,
        code: int | None = None,
        text: str | None = None,
        *,
        enhanced: str | None = None,
        data: object = None,
    ) -> None:
        if code is not None and not (isinstance(code, int) and 400 <= code <= 599):
            raise ValueError(f"Reject: code must be from 400 to 599, not {code!r}")
        if text is not None and not isinstance(text, str):
            raise TypeError(f"Reject: text must be a string, not {type(text).__name__}")
        if enhanced is not None:
            _check_enhanced(enhanced, code)
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.enhanced = enhanced
        self.data = data

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.code, self.enhanced, self.text) if part is not None)


class MessageTooLarge(Reject):
    """The message is larger than the option ``size`` allows: 552, 5.3.4; raised by the message stream (RFC 1870)."""

    def __init__(self, text: str = "Error: message exceeds fixed maximum message size") -> None:
        super().__init__(552, text, enhanced="5.3.4")


def _check_enhanced(enhanced: str, code: int | None) -> None:
    # RFC 3463 2: 'status-code = class "." subject "." detail'; the class of a refusal is 4 or 5.
    parts = enhanced.split(".")
    numbers = len(parts) == 3 and all(p.isascii() and p.isdigit() and len(p) <= 3 for p in parts)
    if not numbers or parts[0] not in ("4", "5"):
        raise ValueError(f"Reject: enhanced must look like '5.1.1' or '4.7.0', not {enhanced!r}")
    if code is not None and parts[0] != str(code)[0]:
        raise ValueError(f"Reject: enhanced code {enhanced} does not belong to reply code {code}")


class ConnectionLost(ConnectionError):
    """The network took a connection away in the middle of a transaction; ``__cause__`` is how. Reaches ``on_error``."""


class HandshakeFailed(ConnectionError):
    """A TLS handshake failed; ``__cause__`` is what ssl said. Reaches ``on_error``."""
