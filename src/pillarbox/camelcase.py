"""The reference system's options (camelCase, milliseconds, 0 for "none") in the terms of ours."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pillarbox.errors import ConfigurationError
from pillarbox.optioncheck import PEERS, hints, likely

if typing.TYPE_CHECKING:
    from pillarbox.options import Declaration


def from_reference(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a mapping with the reference's names, units and empty values into ours."""
    from pillarbox.options import declarations

    by_reference = {d.reference: (name, d) for name, d in declarations().items() if d.reference}
    taken: dict[str, Any] = {}
    for reference, value in mapping.items():
        if reference not in by_reference:
            hint = likely(str(reference), [known for known in by_reference if known])
            raise ConfigurationError(f"unknown option {reference!r}{hint}", str(reference))
        name, declaration = by_reference[reference]
        if not _means_default(name, value):
            taken[name] = _converted(name, value, declaration)
    return taken


def _means_default(name: str, value: Any) -> bool:
    if value is False:  # for a switch false is a value of its own
        return not _takes_false(name)
    if value == math.inf:
        return not _takes_false(name)
    empty = value is None or (isinstance(value, str | bytes | Sequence | Mapping) and not value)
    return empty or (isinstance(value, int | float) and value == 0)


def _takes_false(name: str) -> bool:
    hint = hints().get(name)
    parts = get_args(hint) if get_origin(hint) in (typing.Union, UnionType) else (hint,)
    return name == "logger" or bool in parts or Literal[False] in parts


def _converted(name: str, value: Any, declaration: Declaration) -> Any:
    hint = hints().get(name)
    if value == math.inf:  # "no limit", where False says that
        return False
    if value == 1 and (hint is bool or name in (*PEERS, "logger")):
        return True
    if declaration.scale != 1.0 and isinstance(value, int | float) and not isinstance(value, bool):
        return value * declaration.scale
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and name in ("auth_methods", "disabled_commands", "ignored_hosts", *PEERS):
        return [value]
    return value
