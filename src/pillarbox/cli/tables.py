"""The tables ``[program]`` and ``[[deliver]]`` of the configuration: their keys, defaults and what they may hold."""

from __future__ import annotations

from pydantic import Field, field_validator

from pillarbox import ConfigurationError
from pillarbox.cli.addresses import listen_arguments
from pillarbox.program.access import AccessSettings
from pillarbox.program.cpus import Workers
from pillarbox.program.logs import LogSettings
from pillarbox.program.routes import OPTIONAL_PATIENCE, PATIENCE
from pillarbox.program.settings import Settings, is_http_url

__all__ = ["ProgramSettings", "RouteSettings", "home_of"]


class ProgramSettings(LogSettings):
    """The table ``[program]``; each key is an argument too."""

    workers: Workers = Field(1, description="Processes that share the addresses; auto: as many as there are CPUs.")
    user: str | None = Field(None, description="What to become once the addresses are bound: USER or USER:GROUP.")
    metrics: str | None = Field(None, description="Where to serve metrics and health checks, over HTTP.")
    traces: str | None = Field(None, description="Where to send OpenTelemetry traces; env: as its variables say.")
    trace_addresses: bool = Field(False, description="Let traces name senders, recipients and users.")

    @field_validator("metrics")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None:
            listen_arguments(address)
        return address

    @field_validator("traces")
    @classmethod
    def _is_collector(cls, url: str | None) -> str | None:
        if url is None or url == "env:" or is_http_url(url):
            return url
        raise ConfigurationError("write http://HOST:PORT, or env: for what OTEL_EXPORTER_OTLP_ENDPOINT says")


class RouteSettings(Settings):
    """The keys of every ``[[deliver]]``, beside those of its target."""

    recipients: list[str] = Field(["*"], description="For whom it is, as patterns.")
    listeners: list[str] = Field([], description="Addresses of the listeners it is for; none: all.")
    optional: bool = Field(False, description="Its failure does not fail the message.")
    timeout: float | None = Field(
        None,
        description=(
            f"How long it may take for a message, in seconds; {PATIENCE:g} if it is not said,"
            f" {OPTIONAL_PATIENCE:g} where it is optional."
        ),
        gt=0,
    )

    @property
    def patience(self) -> float:
        """The seconds that it may take."""
        if self.timeout is not None:
            return self.timeout
        return OPTIONAL_PATIENCE if self.optional else PATIENCE


_HOMES: dict[str, type[Settings]] = {
    "[access], or in a [[listen]]": AccessSettings,
    "[[deliver]]": RouteSettings,
    "[program]": ProgramSettings,
}


def home_of(key: str) -> str | None:
    """Return where a key stands that is no option of the server; None for one that there is not."""
    return next((table for table, settings in _HOMES.items() if key in settings.model_fields), None)
