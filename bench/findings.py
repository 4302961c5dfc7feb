"""One figure that is not a time per message, with the target it is held to."""

from __future__ import annotations

from dataclasses import dataclass

from targets import verdict


@dataclass(frozen=True)
class Finding:
    """What was measured, in which unit; a target is "at most", None where it is information."""

    what: str
    value: float
    unit: str
    target: float | None = None

    @property
    def verdict(self) -> str:
        return "" if self.target is None else verdict(self.value, self.target)
