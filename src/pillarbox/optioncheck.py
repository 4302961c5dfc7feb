"""How options are checked: names, types, values and combinations, each with one clear error that names the option."""

from __future__ import annotations

import math
import re
import ssl
import types as pytypes
import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache
from inspect import iscoroutinefunction
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from pillarbox.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pillarbox.options import Declaration, Options

AUTH_METHODS = (
    "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS", "EXTERNAL", "ANONYMOUS",
)  # fmt: skip
# RFC 4422 3.1: "sasl-mech = 1*20mech-char", of upper-case letters, digits, hyphen and underscore
_MECHANISM = r"[A-Z0-9_-]{1,20}"
# Every verb of the SMTP RFCs, so that a list made for another server moves over and a misspelt one is still found.
VERBS = (
    "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "HELP", "VRFY", "EXPN", "AUTH",
    "STARTTLS", "XCLIENT", "XFORWARD", "ETRN", "TURN", "ATRN", "BURL", "SEND", "SOML", "SAML", "WIZ", "SHELL", "KILL",
)  # fmt: skip
_SECRET = ("key", "key_password", "sni_options", "rate_store")  # a wrong value of these is not shown
_BY_NAME = ("key", "cert", "ca")  # what can differ by server name; the first two must be there
# What an option is nothing without.
_NEEDED = {"key": ("cert",), "cert": ("key",), "key_password": ("key",)}
PEERS = ("use_proxy", "use_xclient", "use_xforward")
_WORDS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "None",
    bytes: "bytes",
}


def wrong(name: str, problem: str) -> NoReturn:
    """Raise the error for one option; what caused it may hold what must not show."""
    raise ConfigurationError(f"option {name}: {problem}", name) from None


# --- Names


def names(given: Mapping[str, Any], what: str) -> None:
    """Refuse a name that is no option, with the likely spelling."""
    known = _declarations()
    for name in given:
        if name not in known:
            raise ConfigurationError(f"unknown {what} {name!r}{_hint(name)}", name)


def _hint(name: str) -> str:
    for option, declaration in _declarations().items():
        if declaration.reference == name:
            return f": its name here is {option!r} (Options.from_camel_case takes such names as they are)"
    return likely(name.lower(), list(_declarations()))


def likely(name: str, known: Sequence[str]) -> str:
    """Return ``": did you mean 'size'?"`` or nothing."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ""


# --- Types: pydantic decides, and makes the schema; it is imported at the first construction (60 ms)


@lru_cache(maxsize=1)
def hints() -> dict[str, Any]:
    """Return option → type, for all that a configuration file can hold."""
    from pillarbox.counts import LimitCounts
    from pillarbox.extension import Extension
    from pillarbox.options import Options

    # A file holds mechanisms by their names alone.
    names = {"ssl": ssl, "Extension": Extension, "LimitCounts": LimitCounts, "Mechanism": str}
    found = typing.get_type_hints(Options, localns=names)
    return {name: found[name] for name, declaration in _declarations().items() if not declaration.in_code_only}


@lru_cache(maxsize=1)
def _model() -> type[BaseModel]:
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for name, hint in hints().items():
        declaration = _declarations()[name]
        extra: dict[str, Any] = {"section": declaration.section} | (
            {"unit": declaration.unit} if declaration.unit else {}
        )
        kind = bool if name == "logger" else hint
        field = Field(default=plain_default(name), description=declaration.help, json_schema_extra=extra)
        fields[name] = (kind, field)
    return create_model("Options", __config__=ConfigDict(strict=True, extra="forbid"), **fields)


def plain_default(name: str) -> Any:
    """Return the default as TOML would write it; None where it is computed or there is none."""
    from dataclasses import MISSING, fields

    from pillarbox.options import Options

    default = next(field.default for field in fields(Options) if field.name == name)
    if default is MISSING:
        return None
    return list(default) if isinstance(default, tuple) else default


def types(options: Options) -> None:
    """Refuse a value of the wrong type."""
    from pydantic import ValidationError

    given = {name: getattr(options, name) for name in hints()}
    if not isinstance(given["logger"], bool):
        del given["logger"]  # a logger object; its own check follows
    given["auth_methods"] = _without_mechanisms(given["auth_methods"])
    try:
        _model().model_validate(given)
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        shown = "" if name in _SECRET else f", not {given[name]!r}"
        wrong(name, f"must be {describe(hints()[name])}{shown}")


def _without_mechanisms(methods: Any) -> Any:
    if not isinstance(methods, list | tuple):
        return methods
    return [method for method in methods if not callable(getattr(method, "authenticate", None))]


def describe(hint: Any) -> str:
    """Say a type in words: ``int | None`` is "a whole number or None"."""
    origin = get_origin(hint)
    if origin in (typing.Union, pytypes.UnionType):
        return " or ".join(dict.fromkeys(describe(part) for part in get_args(hint)))
    if origin is Literal:
        return ", ".join(repr(choice) for choice in get_args(hint))
    if origin is not None and issubclass(origin, Mapping):
        return "a table of strings" if get_args(hint)[1] is str else "a table"
    if origin is not None and issubclass(origin, Sequence):
        return "a list of strings" if get_args(hint) == (str,) else "a list of these"
    return _WORDS.get(hint, "a path")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the options that a configuration file can hold."""
    schema: dict[str, Any] = _model().model_json_schema()
    for name, declaration in _declarations().items():
        if name not in schema["properties"]:
            continue
        if declaration.shown_default is not None:
            schema["properties"][name].pop("default", None)
        if (limits := _LIMITS.get(declaration.check)) is not None:
            _restrict(schema["properties"][name], limits)
    _restrict_names(schema["properties"]["sni_options"])
    schema["dependentRequired"] = {name: list(needed) for name, needed in _NEEDED.items()}
    return schema


def _restrict(schema: dict[str, Any], limits: Mapping[str, Any]) -> None:
    for kind in (schema, *schema.get("anyOf", [])):
        if kind.get("type") in ("integer", "number"):
            kind.update(limits)


def _restrict_names(schema: dict[str, Any]) -> None:
    for kind in schema["anyOf"]:
        if kind.get("type") == "object":
            kind["additionalProperties"] = {
                "type": "object",
                "properties": {key: {} for key in _BY_NAME},
                "required": list(_BY_NAME[:2]),
                "additionalProperties": False,
            }


# --- Values: each takes (name, value), refuses it or returns it as it is kept


def positive(name: str, value: Any) -> Any:
    """Refuse a number that is not above zero; None and False mean no limit."""
    if value is not None and value is not False and not (math.isfinite(value) and value > 0):
        wrong(name, f"must be above 0, not {value!r}")
    return value


def not_negative(name: str, value: float | None) -> float | None:
    """Refuse a number below zero; None means no limit."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        wrong(name, f"must be 0 or more, not {value!r}")
    return value


def six_digits(name: str, value: int | None) -> int | None:
    """Refuse a limit that LIMITS cannot announce (RFC 9422 4: one to six digits); None means no limit."""
    return _up_to(name, value, 999_999)


def nine_digits(name: str, value: int | None) -> int | None:
    """Refuse a number of seconds that the nine digits of RFC 2852 4 and RFC 4865 4 cannot say."""
    return _up_to(name, value, 999_999_999)


def _up_to(name: str, value: int | None, largest: int) -> int | None:
    if value is not None and not 1 <= value <= largest:
        wrong(name, f"must be from 1 to {largest}, not {value!r}")
    return value


def deliver_by(name: str, value: bool | int) -> bool | int:
    """Refuse a time that DELIVERBY cannot announce."""
    if not isinstance(value, bool):
        nine_digits(name, value)
    return value


def profile(name: str, value: bool | str) -> bool | str:
    """Refuse a name that cannot stand in an EHLO keyword (RFC 5321 4.1.1.1: printable ASCII without spaces)."""
    if isinstance(value, str) and not (value.isascii() and value.isprintable() and value and " " not in value):
        wrong(name, f"must be true, false or the name of a profile without spaces, not {value!r}")
    return value


def command_length(name: str, value: int) -> int:
    """Refuse a limit below RFC 5321 4.5.3.1.4: a command line may have 512 octets."""
    if value < 512:
        wrong(name, f"must be 512 or more (RFC 5321 4.5.3.1.4), not {value!r}")
    return value


def text(name: str, value: str) -> str:
    """Refuse control characters in what goes into a reply."""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        wrong(name, f"must not hold control characters: {value!r}")
    return value


def host_name(name: str, value: str) -> str:
    """Refuse what cannot be a host name in a greeting."""
    if not value or len(value) > 255 or not value.isascii() or not all(c.isalnum() or c in "-._[]:" for c in value):
        wrong(name, f"must be a host name or an address literal, not {value!r}")
    return value


def hook(name: str, value: Any) -> Any:
    """Refuse a handler that cannot be called."""
    if value is not None and not callable(value):
        wrong(name, f"must be a function, not {type(value).__name__}")
    return value


def plain_function(name: str, value: Any) -> Any:
    """Refuse a coroutine function where OpenSSL calls back and waits."""
    hook(name, value)
    if iscoroutinefunction(value) or iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004 - its kind matters
        wrong(name, "must be a plain function: OpenSSL calls it inside the handshake and cannot await 'async def'")
    return value


def ssl_context(name: str, value: Any) -> Any:
    """Refuse what is no context, or a client's."""
    if value is None:
        return value
    if not isinstance(value, ssl.SSLContext):
        wrong(name, f"must be an ssl.SSLContext, not {type(value).__name__}")
    if value.protocol == ssl.PROTOCOL_TLS_CLIENT:
        wrong(name, "is made for clients: use ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)")
    return value


def extensions(name: str, value: Sequence[Any]) -> tuple[Any, ...]:
    """Refuse what is no extension; what clashes with another shows when the server is made."""
    from pillarbox.extension import Extension

    for entry in value if isinstance(value, Sequence) else (value,):
        if not isinstance(entry, Extension):
            wrong(name, f"must be a list of pillarbox.Extension, not {type(entry).__name__}")
    return tuple(value)


def resolver(name: str, value: Any) -> Any:
    """Refuse an object without ``async reverse(ip)``."""
    if value is not None and not callable(getattr(value, "reverse", None)):
        wrong(name, "must be an object with a method 'async reverse(ip: str) -> Sequence[str]'")
    return value


def limit_counts(name: str, value: Any) -> Any:
    """Refuse what does not count."""
    from pillarbox.counts import LimitCounts

    if value is not None and not isinstance(value, LimitCounts):
        wrong(name, f"must be a pillarbox.LimitCounts, not {type(value).__name__}")
    return value


def logger(name: str, value: Any) -> Any:
    """Refuse an object that cannot log."""
    missing = [m for m in ("debug", "info", "warning", "error") if not callable(getattr(value, m, None))]
    if not isinstance(value, bool) and missing:
        wrong(name, f"must be true, false or a logger; {type(value).__name__} has no {missing[0]}()")
    return value


def pem(name: str, value: Any) -> Any:
    """Keep a list as a tuple; whether it can be read shows when the context is made, at construction."""
    return value if value is None or isinstance(value, str | bytes) or not isinstance(value, Sequence) else tuple(value)


def sni_options(name: str, value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Refuse keys that a context chosen by name cannot change."""
    for host, entry in (value or {}).items():
        unknown = [key for key in entry if key not in _BY_NAME]
        if unknown:
            wrong(
                name,
                f"{host!r} has {unknown[0]!r}: only key, cert and ca can differ by server name"
                " (the handshake's other settings are the server's own)",
            )
        if not {"key", "cert"} <= set(entry):
            wrong(name, f"{host!r} needs both key and cert")
    return value


def auth_methods(name: str, value: Sequence[Any]) -> tuple[Any, ...]:
    """Refuse an unknown mechanism, one's own that is no object or has no name, or none at all."""
    if not value:
        wrong(name, "must name a mechanism; to do without AUTH set disabled_commands = ['AUTH']")
    names = [_known(name, [m], AUTH_METHODS)[0] if isinstance(m, str) else _own_name(name, m) for m in value]
    for own in (method.name for method in value if not isinstance(method, str)):
        if names.count(own) > 1:
            wrong(name, f"has two mechanisms with the name {own}")
    return tuple(known if isinstance(m, str) else m for known, m in zip(names, value, strict=True))


def _own_name(name: str, method: Any) -> str:
    if isinstance(method, type):
        wrong(name, f"takes objects, not classes: write {method.__name__}()")
    if not isinstance(method.name, str) or not re.fullmatch(_MECHANISM, method.name):
        wrong(name, f"a mechanism's name must be 1 to 20 of A-Z, 0-9, - and _ (RFC 4422 3.1), not {method.name!r}")
    return str(method.name)


def verbs(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Refuse an unknown verb."""
    return _known(name, value, VERBS)


def _known(name: str, value: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    upper = tuple(entry.upper() for entry in value)
    for entry in upper:
        if entry not in known:
            wrong(name, f"does not know {entry!r}{likely(entry, known)} (known: {', '.join(known)})")
    return upper


def networks(name: str, value: bool | Sequence[str]) -> bool | tuple[str, ...]:
    """Refuse what is neither an address nor a network nor ``*``."""
    if isinstance(value, bool):
        return value
    for entry in value:
        try:
            if entry != "*":
                ip_network(entry, strict=False)
        except ValueError:
            wrong(name, f"{entry!r} is neither an address nor a network (192.0.2.0/24, 2001:db8::/32, or * for all)")
    return tuple(value)


# What JSON Schema can say of a check.
_LIMITS: dict[Any, dict[str, Any]] = {
    positive: {"exclusiveMinimum": 0},
    not_negative: {"minimum": 0},
    six_digits: {"minimum": 1, "maximum": 999_999},
    nine_digits: {"minimum": 1, "maximum": 999_999_999},
    command_length: {"minimum": 512},
}


# --- Rates

_OF_CLIENTS = ("connections", "messages", "recipients", "auth_failures", "errors")
_OF_ACCOUNTS = ("messages", "recipients", "auth_failures")
_NO_STORE = 'must be "memory" or the URL of a Redis server: redis://host:port/db'


def client_rates(name: str, value: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Refuse rates of what no client does, or that are no rates."""
    return _rates(name, value, _OF_CLIENTS)


def account_rates(name: str, value: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Refuse rates of what no account does, or that are no rates."""
    return _rates(name, value, _OF_ACCOUNTS)


def _rates(name: str, value: Mapping[str, str] | None, known: Sequence[str]) -> Mapping[str, str] | None:
    for what, rate in (value or {}).items():
        if what not in known:
            wrong(name, f"does not know {what!r}{likely(what, known)} (known: {', '.join(known)})")
        try:
            from throttled.rate_limiter import quota_parser
        except ImportError:
            wrong(name, "needs the extra 'rates': pip install 'pillarbox[rates]'")
        try:
            if len(quota_parser.parse(rate)) == 1:
                continue
        except Exception:  # noqa: BLE001, S110 - that library's errors have no common name; all say the same
            pass
        wrong(name, f'{what} must be a rate as "60/minute" or "1000/hour burst 50", not {rate!r}')
    return value


def rate_store(name: str, value: str) -> str:
    """Refuse a place where rates cannot be counted; the URL may hold a password and is not shown."""
    if value == "memory":
        return value
    if not re.match(r"(redis|rediss)://\S+$", value):
        wrong(name, _NO_STORE)
    try:
        import redis  # noqa: F401 - asked for by its own name, which is what is missing
        from redis.asyncio.connection import parse_url
    except ImportError:
        wrong(name, "needs the extra 'redis': pip install 'pillarbox[redis]'")
    try:
        parse_url(value)
    except ValueError:
        wrong(name, _NO_STORE)
    return value


# --- Combinations


def combinations(o: Options) -> None:
    """Refuse what cannot be together."""
    for name in ("needs_upgrade", "secured"):
        if getattr(o, name) and not o.secure:
            wrong(name, "means nothing without secure = true")
    if o.needs_upgrade and o.secured:
        wrong("needs_upgrade", "cannot go with secured: TLS either starts here or is already in place")
    if (o.key is None) != (o.cert is None):
        wrong("cert" if o.cert is None else "key", "key and cert go together, one is missing")
    if o.key_password is not None and o.key is None:
        wrong("key_password", "has no key to open")
    if o.ssl_context is not None:
        for name in ("key", "cert", "ca", "ciphers", "request_cert"):
            if getattr(o, name):
                wrong(name, "cannot go with ssl_context: set it on that context")
        if o.minimum_tls_version != "TLSv1.2":
            wrong("minimum_tls_version", "cannot go with ssl_context: set it on that context")


def _declarations() -> dict[str, Declaration]:
    from pillarbox.options import declarations

    return declarations()
