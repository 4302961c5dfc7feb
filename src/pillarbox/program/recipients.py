"""Which recipients a listener takes from whom, and which targets get them: the rules and the routes together.

What nobody has to write down is here too: the postmaster.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pillarbox import Reject
from pillarbox.program.patterns import normal
from pillarbox.program.routes import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox import Recipient, Session
    from pillarbox.program.access import Access
    from pillarbox.program.routes import Route, Routes

__all__ = ["Recipients"]

# Ways to write a second destination into a local part: user%host, host!user, "user@host". The next server trusts this
# one, and may send on what it would refuse from a stranger (Postfix's allow_untrusted_routing says the same of itself).
_ROUTED = re.compile("[%!@]")


class Recipients:
    """The recipients of one listener, that calls itself ``name``."""

    def __init__(self, name: str, routes: Routes, access: Access) -> None:
        self._name, self._routes, self._access = name, routes, access
        self.postmasters = frozenset(normal(f"postmaster@{domain}") for domain in self._own_domains())

    def _own_domains(self) -> set[str]:
        """Return the domains whose postmaster is here: none where strangers may write to nobody."""
        accept = self._access.accept
        if accept is None or accept.unbounded:
            named = {domain for route in self._routes.all for domain in route.recipients.domains}
        elif accept:
            named = set(accept.domains)
        else:
            return set()
        return {*named, self._name}

    def full(self, address: str) -> str:
        """Return an address with a domain."""
        # RFC 5321 4.5.1: "... as well as the special case of "RCPT TO:<Postmaster>" (with no domain specification),
        # MUST be supported."
        return address if "@" in address else f"{address}@{self._name}"

    def check(self, address: str, session: Session) -> list[Route]:
        """Return the routes of a recipient; raise Reject for one that this client may not write to."""
        full = self.full(address)
        if not self._is_postmaster(full):
            self._access.check_recipient(full, session)
        routes = self.routes(address)
        if not routes:
            raise Reject(550, "Error: no such recipient here", enhanced="5.1.1")
        if _ROUTED.search(full.rpartition("@")[0]) and self._is_stranger(session) and any(map(self._is_gate, routes)):
            raise Reject(550, "Error: relaying denied: the address names another host", enhanced="5.7.1")
        return routes

    def _is_stranger(self, session: Session) -> bool:
        return session.user is None and not self._access.is_near(session)

    def _is_gate(self, route: Route) -> bool:
        """Whether the next server gets from strangers what is for some domains only."""
        return route.target.relays and (self._access.accept is not None or not route.recipients.unbounded)

    def routes(self, address: str) -> list[Route]:
        """Return the routes of a recipient."""
        full = self.full(address)
        found = self._routes.of(full)
        if not self._is_postmaster(full) or not all(map(_sends_away, found)):
            return found
        # RFC 5321 4.5.1: "SMTP systems are expected to make every reasonable effort to accept mail directed to
        # Postmaster from any other system on the Internet." Who gets the mail of that domain gets this too.
        domain = normal(full).rpartition("@")[2]
        here = [route for route in self._routes.all if not route.recipients.excludes(full) and not _sends_away(route)]
        return [route for route in here if domain in route.recipients.domains] or here[:1] or found

    def parts(self, recipients: Sequence[Recipient]) -> list[Part]:
        """Return who has to do what for a message."""
        if self._routes.simple is not None:
            return [Part(self._routes.simple, tuple(recipients))]
        chosen = [(recipient, self.routes(recipient.address)) for recipient in recipients]
        parts = []
        for route in self._routes.all:
            own = tuple(recipient for recipient, routes in chosen if any(each is route for each in routes))
            if own:
                parts.append(Part(route, own))
        return parts

    def _is_postmaster(self, full: str) -> bool:
        """Whether this is a postmaster whom nobody has excepted by name or pattern."""
        accept = self._access.accept
        return normal(full) in self.postmasters and not (accept is not None and accept.excludes(full))


def _sends_away(route: Route) -> bool:
    """Whether a route is for what is nobody's here."""
    return route.target.relays and route.recipients.unbounded
