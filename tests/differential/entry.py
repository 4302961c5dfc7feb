"""What a line of the table of differences is made of, and the sentences that decide more than one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from differential.play import Seen

POSTFIX, AIOSMTPD, NODE = "Postfix", "aiosmtpd", "smtp-server"

# Beginnings of an answer to "what decides".
OPEN = "left open: "
POLICY = "policy: "

_FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE


@dataclass(frozen=True, eq=False)
class Difference:
    """One difference: what the client says, how each server answers, and what decides which of them is right.

    ``ours`` and the values of ``theirs`` are classes of replies, alternatives parted by ``|``; for the aspects
    ``envelope`` and ``content`` they say what the message is then, and only the step is looked at.
    """

    topic: str
    what: str
    step: bytes
    ours: str
    theirs: Mapping[str, str]
    decides: str
    before: bytes = b""
    aspect: str = "reply"

    def explains(self, seen: Seen) -> bool:
        """Whether this is what was seen."""
        if seen.server not in self.theirs or seen.aspect != self.aspect:
            return False
        if not (re.search(self.step, seen.octets, _FLAGS) and re.search(self.before, seen.before, _FLAGS)):
            return False
        known = seen.ours in self.ours.split("|") and seen.theirs in self.theirs[seen.server].split("|")
        return known or self.aspect != "reply"


def all_of_them(answer: str) -> dict[str, str]:
    """Return that each of the others answers so."""
    return dict.fromkeys((POSTFIX, AIOSMTPD, NODE), answer)


# --- What is searched for more than once

PATH = rb"\A(MAIL +FROM|RCPT +TO) ?: *<"
NO_HELLO = rb"\A(?!.*^2 b'(EHLO|HELO))|STARTTLS[^\n]*\n2 b''\Z"

# --- Sentences that decide more than one

NO_PARAMETERS = (
    'RFC 5321 4.1.1: "Several commands (RSET, DATA, QUIT) are specified as not permitting parameters. In the absence of'
    " specific extensions offered by the server and accepted by the client, clients MUST NOT send such parameters and"
    ' servers SHOULD reject commands containing them as having invalid syntax."'
)
CHARACTERS = (
    'RFC 5321 4.1.2, of octets above 127 and control characters: "These characters MUST NOT be used in MAIL or RCPT'
    ' commands or other commands that require mailbox names."'
)
CONTROL = POLICY + "NUL and control characters in a command are refused, whatever the command would do with them."
TERMINATED = (
    'RFC 5321 4.1.1: "The commands themselves are alphabetic characters terminated by <SP> if parameters follow and'
    ' <CRLF> otherwise."'
)
VIOLATION = (
    'RFC 5321 3.8: "a server that closes connections in response to commands that are not understood is in violation of'
    ' this specification."'
)
NO_LIMITS = (
    'RFC 5321 4.5.3.1: "To the maximum extent possible, implementation techniques that impose no limits on the length'
    ' of these objects should be used."'
)
LINE_LIMIT = POLICY + (
    "a line has one limit, `max_command_length`: nothing beyond it is kept in memory. It is eight times the 512 octets"
    " of RFC 5321 4.5.3.1.4."
)
LOCAL_PART = "RFC 5321 4.1.2: `Local-part = Dot-string / Quoted-string`"
DOT_STRING = 'RFC 5321 4.1.2: `Dot-string = Atom *("."  Atom)`: no atom is empty.'
MAILBOX = 'RFC 5321 4.1.2: `Mailbox = Local-part "@" ( Domain / address-literal )`'
DOMAIN = 'RFC 5321 4.1.2: `Domain = sub-domain *("." sub-domain)`, `sub-domain = Let-dig [Ldh-str]`'
LONG_PATH = (
    'RFC 5321 4.5.3.1.3: "The maximum total length of a reverse-path or forward-path is 256 octets (including the'
    ' punctuation and element separators)."'
)
PATH_IS = 'RFC 5321 4.1.2: `Path = "<" [ A-d-l ":" ] Mailbox ">"`'
UNKNOWN = (
    'RFC 5321 4.1.1.11: "If the server SMTP does not recognize or cannot implement one or more of the parameters'
    ' associated with a particular MAIL FROM or RCPT TO command, it will return code 555."'
)
XTEXT = (
    'RFC 3461 4: "hexchar = ASCII "+" immediately followed by two upper case hexadecimal digits", and no other plus'
    " sign is xtext."
)
LAST_IN_GROUP = (
    'RFC 2920 3.1: "The EHLO, DATA, VRFY, EXPN, TURN, QUIT, and NOOP commands can only appear as the last command in a'
    ' group since their success or failure produces a change of state"'
)
SAME_STATE = (
    'RFC 5321 4.1.4: "If the commands in a transaction are out of order to the degree that they cannot be processed by'
    ' the server, a 503 failure reply MUST be returned and the SMTP server MUST stay in the same state."'
)
FIRST_DOT = (
    'RFC 5321 4.5.2: "If the first character is a period and there are other characters on the line, the first'
    ' character is deleted."'
)
