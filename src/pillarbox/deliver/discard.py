"""``discard:`` accepts every message and keeps none: for load tests and for trying things out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.deliver import Target

if TYPE_CHECKING:
    from pillarbox.deliver import Message

__all__ = ["Discard"]


class Discard(Target):
    """The target ``discard:``."""

    def __init__(self, url: str, settings: Any) -> None:
        super().__init__(url, settings)
        if url.partition(":")[2]:
            raise ConfigurationError(f"{url!r}: nothing can follow discard:")

    async def deliver(self, message: Message) -> str:
        """Read the message, so that what is wrong with it is found, and say that it is gone."""
        async for _ in message:
            pass
        return self.url
