"""``pillarbox schema``: the JSON Schema of the configuration file, made from the tables that the program itself reads.

It is of draft-07, which the editors' TOML extensions know, and says what TOML can: there is no null. What it lets pass
may still be wrong (``pillarbox check`` tells); what it refuses, the program refuses too.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from pillarbox import ConfigurationError
from pillarbox.program.files import PEM_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pillarbox.program.settings import Settings

    Schema = dict[str, Any]

_DIALECT = "http://json-schema.org/draft-07/schema#"
_UNITS = {"s": "seconds", "bytes": "bytes", "bytes/s": "bytes per second"}
_NOISE = ("title", "section", "unit", "format", "writeOnly")
_NEEDS = ("required", "dependencies", "allOf")  # what of a model's schema says which keys must be there

_HELP = """
\b
Print the JSON Schema of the configuration file. With it editors complete its
keys, show what they mean, and mark mistakes. For example:
  pillarbox schema > pillarbox.schema.json
and as the first line of the file, for taplo and Even Better TOML:
  #:schema ./pillarbox.schema.json
"""


@click.command(help=_HELP, short_help="Print the JSON Schema of the configuration file.")
def schema() -> None:
    """Run the command."""
    click.echo(json.dumps(document_schema(), indent=2, ensure_ascii=False))


def document_schema() -> Schema:
    """Return the schema of the whole file."""
    from pillarbox import Options
    from pillarbox.cli.config import DEFAULT_ADDRESS
    from pillarbox.cli.tables import ProgramSettings, RouteSettings
    from pillarbox.deliver import known_schemes, target_class
    from pillarbox.program.access import AccessSettings
    from pillarbox.users import known_schemes as known_users
    from pillarbox.users import users_class

    options, access = _options(), _settings(AccessSettings)
    address = {
        "type": "string",
        "description": "host:port, [IPv6]:port, unix:PATH or fd:N.",
        "examples": [DEFAULT_ADDRESS],
    }
    listener = _table(
        {"address": address, **options, **access}, "A listener, and what is different there.", ["address"]
    )
    tables = {
        "server": _table(options, "The options of the server, for all listeners.")
        | {"dependencies": Options.json_schema()["dependentRequired"]},  # as draft-07 calls it
        "access": _table(access, "Who may send what to whom."),
        "program": _table(_settings(ProgramSettings), "The program's own settings; each is an argument too."),
        "listen": {"type": "array", "description": "Where to listen, once for each address.", "items": listener},
        "deliver": _by_scheme("Where messages go.", RouteSettings, known_schemes(), target_class),
        "users": _by_scheme("Who may log in.", None, known_users(), users_class),
    }
    return {"$schema": _DIALECT, "title": "The configuration of pillarbox", **_table(tables)}


def _table(properties: Mapping[str, Any], description: str = "", required: Iterable[str] = ()) -> Schema:
    table: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    if description:
        table["description"] = description
    if names := list(required):
        table["required"] = names
    return table


def _by_scheme(
    description: str, general: type[Settings] | None, schemes: Iterable[str], class_of: Callable[[str], Any]
) -> Schema:
    """Return the schema of an array of tables whose keys depend on the scheme of their ``url``."""
    common = {} if general is None else _settings(general)
    kinds: dict[str, list[str]] = {}  # schemes with the same settings
    for scheme in schemes:
        kinds.setdefault(json.dumps(_own_schema(class_of, scheme)), []).append(scheme)
    found = [(_url(names), json.loads(own)) for own, names in kinds.items()]
    items: Schema = {"required": ["url"], "anyOf": [_entry(url, common, own) for url, own in found]}
    # What must be there stands apart: of alternatives an editor can only say that none fits.
    if needs := [each for url, own in found if (each := _needs(url, own or {}))]:
        items["allOf"] = needs
    return {"type": "array", "description": description, "items": items}


def _own_schema(class_of: Callable[[str], Any], scheme: str) -> Schema | None:
    try:
        model = class_of(f"{scheme}:").Settings
        return None if model.model_config.get("extra") == "allow" else _schema_of(model)
    except (ConfigurationError, ImportError):  # only the whole URL tells, or it cannot be loaded here
        return None


def _url(schemes: list[str]) -> Schema:
    names = [f"{scheme}:" for scheme in schemes]
    # Schemes have no case for the program, but the one that everybody writes.
    return {"type": "string", "pattern": f"^({'|'.join(map(re.escape, names))})", "examples": names}


def _entry(url: Schema, common: Schema, own: Schema | None) -> Schema:
    """Return the schema of a table with such a URL; where its own settings are not known, any key may stand."""
    properties = {"url": url, **common, **(own or {}).get("properties", {})}
    table = _table(properties, f"Settings for {', '.join(url['examples'])}")
    return table | {"additionalProperties": own is None}


def _needs(url: Schema, own: Schema) -> Schema:
    """Return the schema that says what a table with such a URL must have; empty where that is the URL alone."""
    needs = {key: own[key] for key in _NEEDS if key in own}
    if not needs:
        return {}
    return {"if": {"properties": {"url": {"pattern": url["pattern"]}}, "required": ["url"]}, "then": needs}


# --- Tables of the program, in the words of TOML


def _options() -> Schema:
    from pillarbox import Options

    properties = {name: _option(name, each) for name, each in Options.json_schema()["properties"].items()}
    # The program's defaults are not the library's, and depend on whether there are users: see cli.logins.
    properties["auth_optional"].pop("default")
    return properties


def _option(name: str, schema: Schema) -> Schema:
    described = _plain(schema.get("description", ""))
    if unit := _UNITS.get(schema.get("unit", "")):
        described = f"{described} In {unit}."
    if name in PEM_OPTIONS:
        text = {"type": "string"}
        return {"description": described, "anyOf": [text, {"type": "array", "items": text}]}
    return {**_toml(schema), "description": described}


def _settings(model: type[Settings]) -> Schema:
    return dict(_schema_of(model).get("properties", {}))


def _schema_of(model: type[Settings]) -> Schema:
    whole = model.model_json_schema()
    found: Schema = _toml(_inlined(whole, whole.get("$defs", {})))
    return found


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return _inlined({**definitions[reference.rpartition("/")[2]], **rest}, definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


def _toml(schema: Any) -> Any:
    """Return a schema without null and without what only pydantic wants to know."""
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if key not in _NOISE or isinstance(value, dict)}
    if found.get("default", ...) is None:
        del found["default"]
    for key in ("properties", "patternProperties"):
        if key in found:
            found[key] = {name: _toml(each) for name, each in found[key].items()}
    for key in ("items", "additionalProperties"):
        if key in found:
            found[key] = _toml(found[key])
    if "anyOf" in found:
        found = _alternatives(found)
    return found


def _alternatives(schema: Schema) -> Schema:
    kinds: list[Any] = []
    for each in map(_toml, schema.pop("anyOf")):
        if each != {"type": "null"} and each not in kinds:
            kinds.append(each)
    return {**kinds[0], **schema} if len(kinds) == 1 else {**schema, "anyOf": kinds}


def _plain(text: str) -> str:
    """Return help without links: they would lead nowhere from an editor."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
