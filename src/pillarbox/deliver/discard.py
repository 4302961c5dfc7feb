"""``discard:`` accepts every message and keeps none: for load tests and for trying things out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from pillarbox import Session

__all__ = ["Discard"]


class Discard:
    """The target ``discard:``; it is its own delivery too, since it has nothing to remember."""

    def __init__(self, url: str) -> None:
        if url.partition(":")[2]:
            raise ConfigurationError(f"{url!r}: nothing can follow discard:")
        self.url = url

    async def start(self) -> None:
        """Do nothing."""

    async def open(self, session: Session) -> Discard:
        """Return the one delivery there is."""
        return self

    async def write(self, block: bytes) -> None:
        """Forget the bytes."""

    async def commit(self) -> str:
        """Say that the message is gone."""
        return self.url

    async def abort(self) -> None:
        """Do nothing: nothing was kept."""
