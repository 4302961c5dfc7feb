"""A whole conversation: any octets, cut anywhere, give replies or a clean close.

Invariants: no exception; every reply line has the form of RFC 5321 4.2 and at most 512 octets; nothing is held that
is longer than a line may be; and the replies, the messages and the end are the same however the octets are cut.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from peer import Heard, Peer, cut

REPLY = re.compile(rb"(?:[2-5]\d\d[ -][\x20-\x7e\x80-\xff]*\r\n)*")
# The line that is told to those who send out of turn, which is by nature about timing (threats.md).
OUT_OF_TURN = b"Error: SMTP protocol synchronization"
LINE, CUTS = 12_288, 4


def _anyone(auth: Any, session: Any) -> Any:
    return auth.username


_AUTH = {"auth_optional": False, "allow_insecure_auth": True, "on_auth": _anyone, "auth_methods": ["PLAIN", "LOGIN"]}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"lmtp": True},
    {"size": 50},
    {"size": 50, "enforce_size": False, "hide_size": True},
    _AUTH,
    {"bare_newline": "reject"},
    {"bare_newline": "accept", "binarymime": True},
    {"hide_enhanced_status_codes": False, "hide_dsn": False},
    {"use_xclient": True, "use_xforward": True},
    {"max_command_length": 512, "lenient_parameters": True, "lenient_address_parsing": True},
    {"disabled_commands": ["STARTTLS", "BDAT", "VRFY"]},
)


@cache
def peer(number: int) -> Peer:
    """Return the client of the server with these settings."""
    # What is out of turn is by nature about timing, and so is what stands behind STARTTLS.
    fixed: dict[str, Any] = {"forbid_unauth_pipelining": False, "disabled_commands": ["STARTTLS"]}
    return Peer(**fixed | SETTINGS[number])


def one(octets: bytes) -> None:
    """Try one input: the number of the settings, where to cut, and what the client says."""
    if len(octets) < 1 + CUTS:
        return
    client = peer(octets[0] % len(SETTINGS))
    said = octets[1 + CUTS :]
    whole = client.say([said] if said else [])
    _check(whole)
    if OUT_OF_TURN in whole.said:
        return
    for pieces in (cut(said, octets[1 : 1 + CUTS]), [said[at : at + 1] for at in range(len(said))]):
        heard = client.say(pieces)
        _check(heard)
        assert heard == whole, f"{pieces}: {heard} is not {whole}"


def _check(heard: Heard) -> None:
    assert REPLY.fullmatch(heard.said), heard.said
    assert all(len(line) <= 512 for line in heard.said.splitlines(keepends=True)), heard.said
    assert heard.held <= LINE, heard.held
    assert not heard.errors, heard.errors
