"""How a table of the configuration file becomes a checked object, by a pydantic model, and a mistake one line."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from pillarbox import ConfigurationError

__all__ = ["Settings", "is_http_url", "likely", "without_login"]


class Settings(BaseModel):
    """The base of all settings: unknown keys and wrong types are refused, and a value is never changed to fit.

    Secrets are declared as ``pydantic.SecretStr``: neither an error nor a print shows them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Return the settings that a TOML table holds; raise ConfigurationError, which names the key."""
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            # Not `from error`: it holds all values, also those that must not show.
            raise ConfigurationError(_problem(cls, error)) from None


def _problem(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{likely(key, list(model.model_fields))}"
    if first["type"] == "missing":
        return f"{key} is missing"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if _is_secret(model, key) else _shown(first["input"])
    return f"{key}: {reason}{shown}" if key else reason


def _is_secret(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))


def _shown(value: Any) -> str:
    # A table or a list would bury the message, and a text may be a secret in the wrong place: only short, plain values.
    return f", not {value!r}" if isinstance(value, int | float) else ""


def is_http_url(url: str) -> bool:
    """Whether a text is an HTTP URL with a host, and nothing around it."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.split() == [url]
    except ValueError:
        return False


def likely(name: str, known: list[str]) -> str:
    """Return ``": did you mean 'size'?"`` or nothing."""
    close = get_close_matches(name.lower(), known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def without_login(url: str) -> str:
    """Return a URL as it may be shown: without what stands before its last @, be it well written or not."""
    scheme, _, rest = url.partition(":")
    login, _, place = rest.rpartition("@")
    if login.startswith("//"):
        return f"{scheme}://{place}"
    return f"{scheme}:{place}" if ":" in login else url
