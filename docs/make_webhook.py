"""Write docs/webhook-event.md and docs/webhook.schema.json from the event's models; ``make docs`` runs this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pillarbox.deliver.webhook.event import Event

PAGE = Path(__file__).with_name("webhook-event.md")
SCHEMA = Path(__file__).with_name("webhook.schema.json")

_HEAD = """\
<!-- Made by docs/make_webhook.py from src/pillarbox/deliver/webhook/event.py: change the models there, then run
"make docs". -->

# The JSON of a webhook

What a [webhook](target-webhook.md) sends, field by field. [webhook.schema.json](webhook.schema.json) is the same as a
JSON Schema. The names of envelope and session are those of the library ([sessions](sessions.md)).

All fields are always there; what is not known is `null`, or empty. Fields may be added in later versions: ignore those
that you do not know.

Only `id`, `timestamp`, `session` (but for `host_name_appears_as`) and what `message` says of size and place are the
server's own words. All else is what a client or a sender wrote, and nobody has checked it. All text is valid Unicode;
octets that no charset explains have become U+FFFD.
"""


def schema() -> str:
    """Return the JSON Schema."""
    made = Event.model_json_schema(by_alias=True, mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **made}, indent=2) + "\n"


def page() -> str:
    """Return the whole page."""
    made = Event.model_json_schema(by_alias=True, mode="serialization")
    models = made["$defs"]
    order = ["EventData", "EventMessage", "EventAttachment", "EventMailbox"]
    order += ["EventEnvelope", "EventPath", "EventSession", "EventTLS"]
    assert sorted(order) == sorted(models), "a model is new, or gone"  # noqa: S101 - a script for the makers
    tables = [_table("The event", made), *(_table(_title(name), models[name]) for name in order)]
    return _HEAD + "".join(tables)


def _title(name: str) -> str:
    return name.removeprefix("Event")


def _table(title: str, model: dict[str, Any]) -> str:
    rows = "".join(
        f"| `{name}` | {_type(field)} | {_one_line(field.get('description', ''))} |\n"
        for name, field in model["properties"].items()
    )
    return f"\n## {title}\n\n{_one_line(model['description'])}\n\n| field | type | |\n|---|---|---|\n{rows}"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        title = _title(field["$ref"].rpartition("/")[2])
        return f"[{title}](#{title.lower()})"
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "const" in field or "enum" in field:
        return " or ".join(f'`"{value}"`' for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return "pairs" if "prefixItems" in field else f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return f"object of {_type(field['additionalProperties'])}"
    return "RFC 3339 time" if field.get("format") == "date-time" else str(field["type"])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
