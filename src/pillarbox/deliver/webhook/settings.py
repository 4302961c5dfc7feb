"""What the table ``[[deliver]]`` of a webhook may hold; all that can be checked without touching anything is, here."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from pillarbox import ConfigurationError
from pillarbox.deliver import Settings
from pillarbox.program.settings import is_http_url

__all__ = ["WebhookSettings", "check_extra", "shown_url"]

JSON_MAX_SIZE = 10 * 1024 * 1024  # octets of a message in base64, where no limit is set: a receiver holds it as a whole

# RFC 9110 5.6.2: 'token = 1*tchar'; 5.5: a field value has visible characters, spaces and tabs.
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNSENDABLE = re.compile(r"[\s\x00-\x1f\x7f]")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = {
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
}

Seconds = Annotated[float, Field(gt=0, le=600)]


class WebhookSettings(Settings):
    """The settings; relative paths begin at the working directory."""

    # What ``_fits_together`` says is missing, for editors.
    model_config = ConfigDict(
        json_schema_extra={
            "dependencies": {"key": ["cert"]},
            "allOf": [
                {
                    "if": {"properties": {"format": {"const": "reference"}}, "required": ["format"]},
                    "then": {"required": ["folder"]},
                }
            ],
        }
    )

    format: Literal["multipart", "json", "reference"] = "multipart"
    folder: str | None = None
    secret: SecretStr | list[SecretStr] = Field(default_factory=list)
    secret_file: str | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    socket: str | None = None
    proxy: SecretStr | None = None
    connect_timeout: Seconds = 5.0
    request_timeout: Seconds = 30.0
    give_up_after: Seconds = 60.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 20
    max_size: Annotated[int, Field(ge=1)] | None = None
    text_limit: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 256 * 1024

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header field")
            if name.lower() in _OURS or name.lower().startswith("webhook-"):
                raise ValueError(f"{name} is set by the program itself")
            if not _VALUE.fullmatch(value.get_secret_value()):
                raise ValueError(f"the value of {name} has characters that no header field may have")
        return headers

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is not None and not is_http_url(proxy.get_secret_value()):
            raise ValueError("must be the URL of an HTTP proxy: http://HOST:PORT")  # it may hold a password
        return proxy

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.format == "reference" and self.folder is None:
            raise ValueError('format = "reference" needs a folder, where the receiver finds the messages')
        if self.secrets and self.secret_file is not None:
            raise ValueError("secret and secret_file exclude each other")
        if self.key is not None and self.cert is None:
            raise ValueError("key needs cert, the certificate for it")
        if self.socket is not None and self.proxy is not None:
            raise ValueError("socket and proxy exclude each other")
        return self

    @property
    def secrets(self) -> list[str]:
        """The secrets that stand in the table."""
        given = self.secret if isinstance(self.secret, list) else [self.secret]
        return [secret.get_secret_value() for secret in given]

    @property
    def size_limit(self) -> int | None:
        """How large a message may be, in octets; None for any size."""
        return self.max_size or (JSON_MAX_SIZE if self.format == "json" else None)


def shown_url(url: str, settings: WebhookSettings) -> str:
    """Return the URL without password and query; raise ConfigurationError for one that cannot be posted to."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError("the URL of the webhook is none: write https://HOST/PATH") from None
    shown = f"{parts.scheme}://{_host(parts.hostname)}{f':{port}' if port else ''}{parts.path}"
    if not parts.hostname or port == 0 or _UNSENDABLE.search(parts.netloc):
        raise ConfigurationError(f"{shown!r} names no host: write https://HOST/PATH")
    if parts.hostname.isascii() and not all(0 < len(label) < 64 for label in parts.hostname.rstrip(".").split(".")):
        raise ConfigurationError(f"{shown!r}: the host is no name: each part between dots has 1 to 63 characters")
    if _UNSENDABLE.search(url):
        raise ConfigurationError(f"{shown!r}: a space in it is written %20")
    if parts.fragment:
        raise ConfigurationError(f"{shown!r}: a fragment (#…) is not sent: leave it out")
    if parts.scheme == "http" and (settings.ca or settings.cert):
        raise ConfigurationError(f"{shown!r}: ca and cert are for https")
    if parts.scheme == "https" and settings.socket:
        raise ConfigurationError(f"{shown!r}: to a Unix socket there is no TLS: write http://HOST/PATH")
    if parts.username is not None and any(name.lower() == "authorization" for name in settings.headers):
        raise ConfigurationError(f"{shown!r}: there is a user in the URL and Authorization in headers: which is it?")
    return shown + ("?…" if parts.query else "")


def _host(name: str | None) -> str:
    return f"[{name}]" if name and ":" in name else name or ""


def check_extra() -> None:
    """Raise ConfigurationError if the libraries of the extra ``http`` are missing."""
    if not all(find_spec(name) for name in ("aiohttp", "tenacity")):
        raise ConfigurationError("a webhook needs more libraries: pip install 'pillarbox[http]'")
