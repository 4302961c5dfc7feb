"""A whole conversation, with any options: any octets, cut anywhere, give replies or a clean close.

Invariants: no exception, but for those of the application; every reply has the form of RFC 5321 4.2, with the right
enhanced codes; what is said to the client, what the application is asked and gets, and the end are the same however
the octets are cut; each message that was accepted the application has got, and no other; nothing in front of a TLS
handshake is executed behind it; no more recipients than are allowed; no password and no control character in a log.

An input: 4 octets of settings (a bit for each of ``SETTINGS``), 1 for how the application reads (bits 0-2) and the
client talks (3-7), 8 for four places to cut at, and what the client says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import replies
from application import READERS, Application
from peer import Heard, Manner, Peer, bytewise, cut, numbers

from pillarbox import ConfigurationError
from pillarbox.smtp import proxy
from pillarbox.smtp.grammar import has_forbidden_characters

# What is told to those who send out of turn, which is by nature about timing.
OUT_OF_TURN = b"Error: SMTP protocol synchronization"
READY = re.compile(rb"220 (?:2\.0\.0 )?Ready to start TLS\r\n")
_AUTH = re.compile(rb"(?im)^AUTH [^ \r\n]+ ([!-~]{8,})")
_STARTTLS = re.compile(rb"(?i)STARTTLS[^\n]*\n")

MECHANISMS = [
    "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "ANONYMOUS", "SCRAM-SHA-1", "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS",
]  # fmt: skip
_HIDDEN = ("pipelining", "8bitmime", "smtputf8", "chunking", "limits", "starttls")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"lmtp": True},
    {"size": 50},
    {"enforce_size": False},
    {"hide_size": True, "hide_requiretls": False},
    {"hide_enhanced_status_codes": False},
    {"hide_dsn": False},
    {"deliver_by": 60, "future_release": 86_400, "mt_priority": "MIXER", "rrvs": True},
    {"use_xclient": ["192.0.2.0/24"], "use_xforward": ["192.0.2.0/24"]},
    {"lenient_parameters": True, "lenient_address_parsing": True},
    {"max_recipients": 2, "max_messages": 2},
    {"binarymime": True},
    {"bare_newline": "reject"},
    {"bare_newline": "accept"},
    {"auth_optional": False, "max_allowed_unauthenticated_commands": 5},
    {"allow_insecure_auth": True, "auth_methods": MECHANISMS},
    {"disabled_commands": ["BDAT", "VRFY", "HELP"]},
    {"disabled_commands": ["AUTH", "STARTTLS"]},
    {"max_command_length": 512},
    {f"hide_{name}": True for name in _HIDDEN},
    {"use_proxy": ["192.0.2.0/24"]},
    {"secure": True, "secured": True},
    {"forbid_unauth_pipelining": True},
    {},  # the application has all its handlers, and does what it is asked
    {},  # everything is logged
    {"handler_timeout": 3600.0},
    {"max_errors": 3, "max_junk_commands": 4, "max_refused_recipients": 2, "max_auth_failures": 1},
)
ACTS, LOGS = 1 << 22, 1 << 23
CUTS = 4
HEAD = 4 + 1 + 2 * CUTS


class Setting:
    """A server with some settings, and what may be said of all its conversations."""

    def __init__(self, bits: int) -> None:
        options: dict[str, Any] = {"forbid_unauth_pipelining": False}
        for place, more in enumerate(SETTINGS):
            if bits >> place & 1:
                options |= more
        self.acts = bool(bits & ACTS)
        application = Application(
            acts=self.acts, logs=bool(bits & LOGS), most_recipients=options.get("max_recipients", 1000)
        )
        self.peer = Peer(application, **options)

    def check(self, heard: Heard, sent: bytes) -> None:
        """Raise where an invariant does not hold that is about one conversation."""
        options = self.peer.options
        said = heard.said.removesuffix(proxy.BAD_HEADER)
        replies.check(said, codes=not options.hide_enhanced_status_codes)
        if self.peer.application.reader in READERS[:3] and not (self.acts or options.lmtp):
            assert said.count(b"OK: message queued\r\n") == len(heard.messages), heard
        self._check_log(sent)
        if options.bare_newline != "accept" and not options.binarymime:
            for message in heard.messages:
                assert b"\0" not in message
                assert message.count(b"\r\n") == message.count(b"\r") == message.count(b"\n"), message

    def _check_log(self, sent: bytes) -> None:
        application = self.peer.application
        # Short ones may stand in a log for another reason, and so may one that was sent as it is, as a command.
        secrets = [secret for secret in application.secrets if len(secret) > 7 and secret.encode() not in sent]
        tokens = [found[1] for found in _AUTH.finditer(sent)]
        secrets += [token.decode() for token in tokens if sent.count(token) == 1]
        for line in application.log.lines:
            assert not has_forbidden_characters(line), line
            assert not any(secret in line for secret in secrets), line


@lru_cache(512)
def _setting(bits: int) -> Setting | None:
    try:
        return Setting(bits)
    except ConfigurationError:
        return None


def _there(octets: bytes) -> Setting | None:
    """Return the server that an input asks for; None where its settings contradict each other."""
    there = _setting(int.from_bytes(octets[:4], "little") & ((1 << len(SETTINGS)) - 1))
    if there is not None:
        there.peer.application.reader = READERS[octets[4] % len(READERS)]
    return there


def one(octets: bytes) -> None:
    """Try one input."""
    if len(octets) < HEAD:
        return
    there = _there(octets)
    if there is None:
        return
    places, said = numbers(octets[5:HEAD]), octets[HEAD:]
    _check_starttls(there, said)
    flights, whole = _whole(there, said)
    for ways in ([cut(flight, places) for flight in flights], [bytewise(flight) for flight in flights]):
        _compare(there.peer.say(ways), whole, ways)
    manner = Manner(eager=bool(octets[4] & 8), most=1 + places[0] % 100, room=100 if octets[4] & 16 else None)
    ways = [cut(flight, places) for flight in flights]
    _compare(there.peer.say(ways, manner), whole, ways, manner)


def every_cut(octets: bytes) -> None:
    """Try one input cut in two at each place, for the tests."""
    there = _there(octets)
    assert there is not None, "settings that contradict each other"
    flights, whole = _whole(there, octets[HEAD:])
    for number, flight in enumerate(flights):
        for place in range(1, len(flight)):
            ways = [[each] for each in flights]
            ways[number] = [flight[:place], flight[place:]]
            _compare(there.peer.say(ways), whole, ways)


def _whole(there: Setting, said: bytes) -> tuple[list[bytes], Heard]:
    """Return what the client sends when, and what comes of it where each flight is in one piece."""
    options = there.peer.options
    lockstep = options.forbid_unauth_pipelining
    while True:
        flights = _flights(said, lockstep=lockstep, proxied=bool(options.use_proxy))
        whole = there.peer.say([[flight] for flight in flights])
        there.check(whole, said)
        if lockstep or OUT_OF_TURN not in whole.said:
            assert OUT_OF_TURN not in whole.said, whole
            return flights, whole
        lockstep = True


def _flights(said: bytes, *, lockstep: bool, proxied: bool) -> list[bytes]:
    """Cut at the places where a client has to wait for an answer, so that nothing depends on timing."""
    ends = {0, len(said)}
    if proxied:
        ends.add(_length_of_header(said))
    if lockstep:
        ends |= {at + 1 for at, octet in enumerate(said) if octet == ord("\n")}
    else:
        ends |= {found.end() for found in _STARTTLS.finditer(said)}
    return [said[begin:end] for begin, end in pairwise(sorted(ends))]


def _length_of_header(said: bytes) -> int:
    try:
        header = proxy.parse(said)
    except proxy.BadHeader:
        return 0
    return 0 if header is None else header.length


def _check_starttls(there: Setting, said: bytes) -> None:
    """Send all in one piece: STARTTLS is then never followed by anything."""
    if _STARTTLS.search(said) and not there.peer.options.use_proxy:
        heard = there.peer.say([[said]])
        there.check(heard, said)
        ready = READY.search(heard.said)
        assert ready is None or ready.end() == len(heard.said), heard


def _compare(heard: Heard, whole: Heard, ways: Sequence[Sequence[bytes]], manner: Manner | None = None) -> None:
    assert heard == whole, f"{manner} {ways}:\n{heard} is not\n{whole}"
