"""The options as typed keywords of ``SMTPServer`` and ``listen``: for type checkers and editors alone.

``Options`` declares them; a test holds the two equal.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from pillarbox.counts import LimitCounts
from pillarbox.extension import Extension
from pillarbox.options import PEM, Hook, Resolver, TLSVersion
from pillarbox.smtp.sasl import Mechanism


class OptionKeywords(TypedDict, total=False):
    """The fields of ``Options``, none of them required."""

    name: str
    banner: str
    helo_response: str
    size: int | None
    hide_size: bool
    lmtp: bool
    logger: Any
    component: str
    secure: bool
    needs_upgrade: bool
    secured: bool
    key: PEM | None
    cert: PEM | None
    ca: PEM | None
    key_password: str | None
    ciphers: str | None
    minimum_tls_version: TLSVersion
    request_cert: bool
    reject_unauthorized: bool
    sni_options: Mapping[str, Mapping[str, Any]] | None
    sni_callback: Hook | None
    ssl_context: ssl.SSLContext | None
    handshake_timeout: float | None
    hide_starttls: bool
    allow_insecure_auth: bool
    auth_methods: Sequence[str | Mechanism]
    auth_optional: bool
    auth_required_message: str
    max_allowed_unauthenticated_commands: int | Literal[False]
    disabled_commands: Sequence[str]
    hide_pipelining: bool
    hide_8bitmime: bool
    hide_smtputf8: bool
    hide_enhanced_status_codes: bool
    hide_dsn: bool
    hide_requiretls: bool
    hide_chunking: bool
    binarymime: bool
    deliver_by: bool | int
    future_release: int | None
    mt_priority: bool | str
    rrvs: bool
    hide_limits: bool
    extensions: Sequence[Extension]
    max_command_length: int
    lenient_address_parsing: bool
    lenient_parameters: bool
    bare_newline: Literal["normalize", "reject", "accept"]
    forbid_unauth_pipelining: bool
    enforce_size: bool
    greet_delay: float
    socket_timeout: float | None
    close_timeout: float | None
    handler_timeout: float | None
    disable_reverse_lookup: bool
    resolver: Resolver | None
    max_clients: int | None
    max_clients_per_address: int | None
    max_recipients: int | None
    max_messages: int | None
    max_errors: int | None
    max_junk_commands: int | None
    max_refused_recipients: int | None
    max_auth_failures: int | None
    auth_failure_delay: float
    command_timeout: float | None
    reply_timeout: float | None
    min_data_rate: int | None
    max_session_duration: float | None
    rates_per_address: Mapping[str, str] | None
    rates_per_account: Mapping[str, str] | None
    rates_over_all: Mapping[str, str] | None
    rate_store: str
    limit_counts: LimitCounts | None
    unlimited_hosts: Sequence[str]
    use_proxy: bool | Sequence[str]
    proxy_timeout: float | None
    ignored_hosts: Sequence[str]
    use_xclient: bool | Sequence[str]
    use_xforward: bool | Sequence[str]
    on_connect: Hook | None
    on_secure: Hook | None
    on_ehlo: Hook | None
    on_auth: Hook | None
    on_scram: Hook | None
    on_mail_from: Hook | None
    on_rcpt_to: Hook | None
    on_data: Hook | None
    on_reset: Hook | None
    on_vrfy: Hook | None
    on_expn: Hook | None
    on_help: Hook | None
    on_close: Hook | None
    on_error: Hook | None
