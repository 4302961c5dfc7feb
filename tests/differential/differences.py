"""Where other servers answer otherwise than ours, and what decides. docs/differences.md is made from this table.

A difference that a run shows must stand here, and what stands here must be shown by a run.
"""

from __future__ import annotations

from differential.differences_addresses import ADDRESSES
from differential.differences_commands import COMMANDS
from differential.differences_messages import MESSAGES
from differential.entry import Difference
from differential.play import Seen

# The first that fits explains what is seen.
DIFFERENCES = (*COMMANDS, *ADDRESSES, *MESSAGES)


def explained(seen: Seen) -> Difference | None:
    """Return the entry for what was seen; None where there is none."""
    return next((entry for entry in DIFFERENCES if entry.explains(seen)), None)
