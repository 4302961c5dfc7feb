"""The descriptors 0, 1 and 2: a program that was started without them opens nothing of its own under their numbers.

Else what is meant for standard output, or for the log, would go to a client or into a database.
"""

from __future__ import annotations

import os

__all__ = ["hold_standard_descriptors"]

_ERROR_OUTPUT = 2


def hold_standard_descriptors() -> None:
    """Open the null device for each that is closed: before anything else is opened, which would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Who closed standard error wants no log. What is written to the other two must not vanish without an error.
            null = os.open(os.devnull, os.O_WRONLY if number == _ERROR_OUTPUT else os.O_RDONLY)
            os.set_inheritable(null, True)
