"""Write docs/options.md from the declarations of the options; ``make docs`` runs this, a test keeps the page true."""

from __future__ import annotations

import ssl
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pillarbox import Extension, LimitCounts, Options
from pillarbox.optioncheck import plain_default
from pillarbox.options import HANDLERS, PEM, SECTIONS, Declaration, Hook, Resolver, declarations

PAGE = Path(__file__).with_name("options.md")

_HEAD = """\
<!-- Made by docs/make_options.py from src/pillarbox/options.py: change the declaration, then run "make docs". -->

# Options

An option is a keyword of `SMTPServer` and of `listen`, where it holds for that listener alone. `Options` is all of
them together: checked, and not to be changed afterwards.

```python
from pillarbox import Options, SMTPServer

server = SMTPServer(size=25 * 2**20, auth_optional=True)

options = Options(name="mx.example.com", socket_timeout=30)
server = SMTPServer(options, max_clients=500)
```

A wrong name, type or combination raises `ConfigurationError` when the server or the listener is made, and its text
names the option:

```python
from pillarbox import ConfigurationError

try:
    SMTPServer(socket_timeot=30)
except ConfigurationError as error:
    assert str(error) == "unknown option 'socket_timeot': did you mean 'socket_timeout'?"
```

The program takes options too: under `[server]` in its configuration file, or by `--set NAME=VALUE`; see
[the program](program.md). Options marked † are Python objects and can be set in a program only.

**Units.** Times are in seconds, fractions allowed; sizes are in bytes. "none" as a default means no limit or nothing.

**smtp-server** is the option's name in the Node.js library of that name. `Options.from_camel_case` takes a mapping
with those names, and times in milliseconds; see [coming from smtp-server](coming-from.md).
"""

_TAIL = """
## JSON Schema

`Options.json_schema()` returns a JSON Schema of all that a configuration file can hold under `[server]` (so without the
options marked †): types, defaults, and for each option its help, its section and its unit. Editors and other programs
can check a configuration with it.

```python
import json

schema = Options.json_schema()
assert schema["properties"]["size"]["unit"] == "bytes"
print(json.dumps(schema, indent=2))
```
"""

_KINDS: dict[Any, str] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    Any: "bool or logger",
    Hook: "function",
    LimitCounts: "LimitCounts",
    Resolver: "resolver",
    ssl.SSLContext: "`ssl.SSLContext`",
}


def page() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD, *(_section(section) for section in SECTIONS)]) + _TAIL


def _section(section: str) -> str:
    rows = [_row(name, d) for name, d in declarations().items() if d.section == section]
    note = "\nWhat handlers may return and raise is on a page of its own: [handlers](handlers.md).\n"
    columns = ["| name | type | default | unit | smtp-server | what it does |", "|---|---|---|---|---|---|"]
    return "\n".join([f"## {section}", note if section == HANDLERS else "", *columns, *rows, ""])


def _row(name: str, declaration: Declaration) -> str:
    cells = (
        f"`{name}`{' †' if declaration.in_code_only else ''}",
        _kind(_hints()[name]),
        _default(name, declaration),
        declaration.unit or "",
        f"`{declaration.reference}`" if declaration.reference else "",
        declaration.help,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(name: str, declaration: Declaration) -> str:
    if declaration.shown_default is not None:
        return declaration.shown_default
    default = plain_default(name)
    if default is None or default == "":
        return "none"
    return f"`{default!r}`".replace("'", '"')


def _kind(hint: Any) -> str:
    """Say a type in a few words; None is left out, the default tells of it."""
    if hint == PEM | None:
        return "PEM text, bytes or path, or a list"
    origin = get_origin(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(hint) if part is not type(None))
    if origin is Literal:
        return ", ".join(f"`{choice!r}`".replace("'", '"') for choice in get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "list of str"
    return _KINDS[hint]


def _hints() -> dict[str, Any]:
    names = {"ssl": ssl, "Extension": Extension, "LimitCounts": LimitCounts, "Mechanism": str}
    return typing.get_type_hints(Options, localns=names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
