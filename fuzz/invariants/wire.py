"""The wire on a transport against the plain one: the same octets give the same replies, messages and end.

The server's buffers are made small, so that an input reaches what otherwise takes a megabyte: lines past their limit,
pauses in reading, reading in bulk, replies that wait for a client that does not read. Invariants: as above, however the
octets are cut, whether or not the client waits, and however little it reads; and what is held unread, and what
waits to be sent, stays below its bound. Where the server shuts down or the connection is lost in the middle, all that
was before is as it would have been without.

An input: 1 octet for the settings, 1 for how the application reads, 1 for the octets that are read at once, 1 for the
replies that may wait, 8 for four places to cut at, and what the client says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import replies
from application import READERS, Application
from peer import Heard, Manner, Peer, Sizes, bytewise, cut, numbers

from invariants.dialogue import OUT_OF_TURN
from pillarbox.smtp import reply

SMALL = Sizes(auth_line=600, high_water=700, unsent=100, bulk=48, piece=16)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"lmtp": True},
    {"bare_newline": "reject", "size": 300},
    {"bare_newline": "accept", "binarymime": True},
    {"allow_insecure_auth": True, "auth_methods": ["PLAIN", "LOGIN", "CRAM-MD5"]},
)
# The longest reply of these servers is that to EHLO.
LONGEST_REPLY = 400
CUTS = 4
HEAD = 4 + 2 * CUTS
SHUTTING_DOWN = reply.SHUTTING_DOWN.plain
BYTEWISE = 600  # what is longer takes long, octet by octet


@cache
def peer(settings: int) -> Peer:
    """Return the client of the server with these settings."""
    fixed: dict[str, Any] = {
        "forbid_unauth_pipelining": False,
        "disabled_commands": ["STARTTLS"],
        "max_command_length": 512,
    }
    return Peer(Application(acts=False), SMALL, **fixed | SETTINGS[settings])


def one(octets: bytes) -> None:
    """Try one input."""
    if len(octets) < HEAD:
        return
    client, flights, plain = _plainly(octets)
    most, room, places = 1 + 16 * octets[2], octets[3] * 4, numbers(octets[4:HEAD])
    cuts = [cut(flight, places) for flight in flights]
    single = [bytewise(flight) for flight in flights] if len(octets) < BYTEWISE else cuts
    for ways, manner in (
        ([[flight] for flight in flights], Manner(most=most)),
        (cuts, Manner()),
        (cuts, Manner(eager=True, most=most)),
        (cuts, Manner(eager=True, most=most, room=room)),
        (single, Manner(eager=True, room=room)),
    ):
        _compare(client.say(ways, manner), plain, ways, manner)
    for resets in (False, True):
        _stop(client, cuts, plain, Manner(until=places[0] % (CUTS + 1), resets=resets))


def _stop(client: Peer, ways: Sequence[Sequence[bytes]], plain: Heard, manner: Manner) -> None:
    """Stop in the middle: what was said and kept until then is what would have been without it."""
    heard = client.say(ways, manner)
    said = heard.said.removesuffix(SHUTTING_DOWN)
    assert plain.said.startswith(said), f"{manner} {ways}:\n{heard} does not begin as\n{plain}"
    assert heard.messages == plain.messages[: len(heard.messages)], (manner, ways)


def every_cut(octets: bytes) -> None:
    """Try one input cut in two at each place, for the tests."""
    client, flights, plain = _plainly(octets)
    for number, flight in enumerate(flights):
        for place in range(1, len(flight)):
            ways = [[each] for each in flights]
            ways[number] = [flight[:place], flight[place:]]
            _compare(client.say(ways), plain, ways, Manner())


def _plainly(octets: bytes) -> tuple[Peer, list[bytes], Heard]:
    """Return the client, what it sends when, and what it hears on the plain wire."""
    client = peer(octets[0] % len(SETTINGS))
    client.application.reader = READERS[octets[1] % len(READERS)]
    flights = [octets[HEAD:]] if octets[HEAD:] else []
    plain = client.say_plainly(flights)
    if OUT_OF_TURN in plain.said:  # it matters what had arrived: so let the client wait for each reply
        flights = octets[HEAD:].splitlines(keepends=True)
        plain = client.say_plainly(flights)
    replies.check(plain.said, codes=False)
    return client, flights, plain


def _compare(heard: Heard, plain: Heard, ways: Sequence[Sequence[bytes]], manner: Manner) -> None:
    _check_bounds(heard, manner)
    assert heard == plain, f"{manner} {ways}:\n{heard} is not\n{plain}"


def _check_bounds(heard: Heard, manner: Manner) -> None:
    # Two reads: who waits is woken by the first one, and the second may come before it runs.
    assert heard.held <= SMALL.high_water + 2 * manner.most, heard.held
    if manner.room is not None:
        assert heard.unread <= manner.room + SMALL.unsent + LONGEST_REPLY, heard.unread
