"""Random dialogues: plausible ones with broken commands in them. One seed makes always the same dialogue."""

from __future__ import annotations

from random import Random

from differential.dialogues import EHLO, HELO
from differential.forms import ADDRESSES, DSN_PARAMETERS, MAIL_PARAMETERS, RCPT_DSN_PARAMETERS
from differential.play import Dialogue, Step, content, group, raw, step

_LENGTH = 14

# Words of a message, among them what may pass for its end.
_WORDS = (b"one", b"two", b"\r\n", b"\r\n", b"\n", b"\r", b".", b"..", b" ", b"\xc3\xbc", b"RSET\r\n", b"\r\n.",
          b"\n.\n", b"MAIL FROM:<evil@example.net>\r\n", b"\r\n.\n", b"\n.\r\n", b".\r", b"\r\n..\r\n",
          b"x" * 80)  # fmt: skip
_SMALL = ("NOOP", "NOOP word", "RSET", "HELP", "VRFY bob@example.com", "RSET x", "FOO", "", "EXPN list", "VRFY",
          "DATA x", "MAIL", "RCPT TO:", "STARTTLS x", "noop", "RSET ", "X" * 60, "AUTH FOO")  # fmt: skip
_PLAIN = ("ann@example.org", "bob@example.com", "a.b+c@example.org", "x@sub.example.net")
_ODD = tuple(ADDRESSES)
_MARKS = '<>@" :;,.()[]\\=+-_\t'


class _Dialogue:
    """A dialogue as it is made."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        # Who lacks an extension is not asked: aiosmtpd has neither, smtp-server no CHUNKING.
        self.chunking, self.dsn = seed % 3 == 0, seed % 3 < 2
        self.steps: list[Step] = [step(EHLO)]
        self.needs: set[str] = set()

    def address(self) -> str:
        return self.random.choice(_PLAIN if self.random.random() < 0.7 else _ODD)

    def command(self, verb: str) -> str:
        """Return MAIL FROM or RCPT TO with an address, and perhaps parameters or a mistake."""
        form = self.random.choice(
            ("{}:<{}>",) * 12 + ("{}: <{}>", "{} : <{}>", "{}:{}", "{}:<{}", "{}<{}>", "{}:<{}>x")
        )
        text = form.format(verb, self.address()) + self.parameters(verb)
        kind = self.random.random()
        if kind < 0.05:
            return text.swapcase()
        return self.mistake(text) if kind < 0.15 else text

    def parameters(self, verb: str) -> str:
        if self.random.random() < 0.7:
            return ""
        if not self.dsn or self.random.random() < 0.5:
            # NOTIFY in RCPT is DSN's.
            return " " + self.random.choice(
                [one for one in MAIL_PARAMETERS if verb == "MAIL FROM" or "NOTIFY" not in one]
            )
        self.needs.add("DSN")
        return " " + self.random.choice(DSN_PARAMETERS if verb == "MAIL FROM" else RCPT_DSN_PARAMETERS)

    def mistake(self, text: str) -> str:
        """Drop, double or put in one character behind the colon."""
        at = self.random.randrange(min(len(text), 9), len(text) + 1)
        return self.random.choice((text[:at] + text[at + 1 :], text[:at] + text[at - 1 :],
                                   text[:at] + self.random.choice(_MARKS) + text[at:]))  # fmt: skip

    def message(self) -> bytes:
        """Return a message with one end: what is behind it would be commands, which are compared one by one."""
        text = b"\r\n" + b"".join(self.random.choices(_WORDS, k=self.random.randrange(12))) + b"\r\n.\r\n"
        while text.index(b"\r\n.\r\n") < len(text) - 5:
            text = text.replace(b"\r\n.\r\n", b"\r\n", 1)
        return text[2:]

    def chunk(self) -> Step:
        self.needs.add("CHUNKING")
        octets = b"".join(self.random.choices(_WORDS, k=self.random.randrange(1, 6)))
        last = b" LAST" if self.random.random() < 0.6 else b""
        return raw(b"BDAT %d%s\r\n%s" % (len(octets), last, octets))

    def more(self) -> list[Step]:
        """Return what is said next."""
        kind = self.random.random()
        if kind < 0.22:
            return [step(self.command("MAIL FROM"))]
        if kind < 0.5:
            return [step(self.command("RCPT TO"))]
        if kind < 0.62:
            return [step("DATA"), content(self.message())]
        if kind < 0.68 and self.chunking:
            return [self.chunk()]
        if kind < 0.74:
            return [group("MAIL FROM:<ann@example.org>", self.command("RCPT TO"), "RCPT TO:<bob@example.com>")]
        if kind < 0.9:
            return [step(self.random.choice(_SMALL))]
        # From here on it is compared again, where something has differed before.
        return [step(self.random.choice((EHLO, EHLO, EHLO, HELO)))]

    def made(self, name: str) -> Dialogue:
        while len(self.steps) < _LENGTH:
            self.steps += self.more()
        return Dialogue(name, (*self.steps, step("QUIT")), frozenset(self.needs))


def dialogue(seed: int) -> Dialogue:
    """Return the dialogue of a seed."""
    return _Dialogue(seed).made(f"random {seed}")
