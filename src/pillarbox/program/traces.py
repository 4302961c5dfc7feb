"""Traces by OpenTelemetry (the extra ``traces``): a span for each session, each transaction in it and each delivery.

Made by handlers around the program's own, so nothing runs, and nothing is imported, where there are no traces. What
a span says is decided here: no name or address of a person, unless the configuration asks for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError, MessageStream, Reject, __version__
from pillarbox.program.metrics import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from pillarbox import Address, AuthRequest, Recipient, Session, TLSInfo
    from pillarbox.program.fanout import Delivered

__all__ = ["ENVIRONMENT", "Traces"]

# The address that says: where OTEL_EXPORTER_OTLP_ENDPOINT says.
ENVIRONMENT = "env:"
# How long the end of the program waits for the last spans to leave.
_PATIENCE = 5.0
_SHOWN_RECIPIENTS = 20
# Under these a session keeps its spans.
_SESSION, _TRANSACTION = "pillarbox.program.traces.session", "pillarbox.program.traces.transaction"


class Traces:
    """Where spans go, and the handlers that make them.

    url: of a collector that takes OTLP over HTTP, without ``/v1/traces``, or ``env:``. addresses: whether spans may
    name users, senders and recipients. The environment variables of OpenTelemetry hold for the rest. Raises
    ConfigurationError where the extra is not installed.
    """

    def __init__(self, url: str, *, addresses: bool = False) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigurationError(f"traces need {error.name}: pip install 'pillarbox[traces]'") from error
        except ValueError as error:  # some of the variables are read at the import
            raise _wrong_variable(error) from error
        endpoint = None if url == ENVIRONMENT else url.rstrip("/") + "/v1/traces"
        self._addresses = addresses
        self._api = trace
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        try:
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        except ValueError as error:
            raise _wrong_variable(error) from error
        self._tracer = self._provider.get_tracer("pillarbox", __version__)

    async def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # Not to_thread: the loop waits for its threads.
        threading.Thread(target=shut_down, daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _PATIENCE)

    def handlers(self, own: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        """Return the handlers of a listener with spans around them."""
        always = {
            "on_connect": self._connect,
            "on_secure": self._secure,
            "on_mail_from": self._mail_from,
            "on_data": self._data,
            "on_reset": self._reset,
            "on_close": self._close,
        }
        where_there = {"on_auth": self._auth, "on_rcpt_to": self._rcpt_to}
        around = always | {name: make for name, make in where_there.items() if name in own}
        return {**own, **{name: make(own.get(name)) for name, make in around.items()}}

    # --- The session

    def _connect(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_connect(session: Session) -> Any:
            facts = _facts(session)
            if _SESSION in session.state:  # asked again after XCLIENT, which says who the client is
                session.state[_SESSION].set_attributes(facts)
                return await _answer(inner, session)
            span = self._tracer.start_span("SMTP session", kind=self._api.SpanKind.SERVER, attributes=facts)
            session.state[_SESSION] = span
            return await _answer(inner, session)

        return on_connect

    def _secure(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_secure(tls: TLSInfo, session: Session) -> Any:
            if _SESSION in session.state:
                session.state[_SESSION].add_event("TLS", {"tls.protocol.version": tls.version.removeprefix("TLSv")})
            return await _answer(inner, tls, session)

        return on_secure

    def _auth(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_auth(auth: AuthRequest, session: Session) -> Any:
            accepted = False
            try:
                answer = await _answer(inner, auth, session)
                accepted = bool(answer)
            finally:
                if _SESSION in session.state:
                    said = {"smtp.auth.mechanism": auth.method, "smtp.auth.accepted": accepted}
                    session.state[_SESSION].add_event("AUTH", said)
            return answer

        return on_auth

    def _close(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_close(session: Session) -> Any:
            self._end_transaction(session, "aborted")
            span: Span | None = session.state.pop(_SESSION, None)
            if span is not None:
                span.set_attributes(_last_facts(session))
                if self._addresses and session.username:
                    span.set_attribute("user.name", session.username)
                span.end()
            return await _answer(inner, session)

        return on_close

    # --- A transaction

    def _mail_from(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_mail_from(sender: Address, session: Session) -> Any:
            self._end_transaction(session, "reset")  # by an EHLO
            self._begin_transaction(sender, session)
            try:
                return await _answer(inner, sender, session)
            except Reject as refusal:
                self._end_transaction(session, *_refused(refusal, 550))
                raise

        return on_mail_from

    def _rcpt_to(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_rcpt_to(recipient: Recipient, session: Session) -> Any:
            try:
                return await _answer(inner, recipient, session)
            except Reject as refusal:
                if _TRANSACTION in session.state:
                    said: dict[str, AttributeValue] = {"smtp.response.status_code": refusal.code or 550}
                    if self._addresses:
                        said["smtp.rcpt_to"] = recipient.address
                    session.state[_TRANSACTION].add_event("RCPT refused", said)
                raise

        return on_rcpt_to

    def _data(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_data(stream: MessageStream, session: Session) -> Any:
            span: Span | None = session.state.get(_TRANSACTION)
            if span is None:  # a host that is ignored
                return await _answer(inner, stream, session)
            said: tuple[str, int | None] = ("aborted", None)
            try:
                # So that what a target's client library does is a part of the trace.
                with self._api.use_span(span, record_exception=False, set_status_on_exception=False):
                    answer = await _answer(inner, stream, session)
                said = _accepted(answer)
            except Reject as refusal:
                said = _refused(refusal, 450)
                raise
            except ConnectionError:
                raise
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                said = ("failed", 451)
                raise
            finally:
                span.set_attributes(self._envelope(stream, session))
                self._end_transaction(session, *said)
            return answer

        return on_data

    def _reset(self, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        async def on_reset(session: Session) -> Any:
            self._end_transaction(session, "reset")
            return await _answer(inner, session)

        return on_reset

    def _begin_transaction(self, sender: Address, session: Session) -> None:
        if _SESSION not in session.state:
            return
        within = self._api.set_span_in_context(session.state[_SESSION])
        facts: dict[str, AttributeValue] = {"smtp.transaction.id": f"{session.id}.{session.transaction}"}
        if self._addresses:
            facts["smtp.mail_from"] = sender.address
        session.state[_TRANSACTION] = self._tracer.start_span("SMTP transaction", within, attributes=facts)

    def _envelope(self, stream: MessageStream, session: Session) -> dict[str, AttributeValue]:
        envelope = session.envelope
        facts: dict[str, AttributeValue] = {
            "smtp.recipient.count": len(envelope.rcpt_to),
            "smtp.message.size": stream.byte_length,
            "smtp.body_type": envelope.body_type,
        }
        if self._addresses:
            facts["smtp.rcpt_to"] = [recipient.address for recipient in envelope.rcpt_to[:_SHOWN_RECIPIENTS]]
        return facts

    def _end_transaction(self, session: Session, became: str, code: int | None = None) -> None:
        span: Span | None = session.state.pop(_TRANSACTION, None)
        if span is None:
            return
        span.set_attribute("smtp.outcome", became)
        if code is not None:
            span.set_attribute("smtp.response.status_code", code)
        if became in ("deferred", "failed"):  # what is wrong here; a 5xx is what the client asked for
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    # --- A delivery

    def delivered(self, done: Delivered, session: Session) -> None:
        """Note one delivery: an observer of the receiver."""
        if _TRANSACTION not in session.state:
            return
        target = done.part.route.target
        counts = Counter(outcome(answer) for answer in done.answers)
        ended = int(done.ended * 1e9)
        span = self._tracer.start_span(
            f"deliver {target.url.partition(':')[0]}",
            self._api.set_span_in_context(session.state[_TRANSACTION]),
            kind=self._api.SpanKind.CLIENT if target.relays else self._api.SpanKind.INTERNAL,
            attributes={
                "pillarbox.target": target.url,
                **{f"pillarbox.recipients.{name}": number for name, number in counts.items()},
            },
            start_time=ended - int(done.seconds * 1e9),
        )
        if counts["deferred"]:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(ended)


async def _answer(inner: Callable[..., Any] | None, *arguments: object) -> Any:
    """Return what a handler answers, if there is one."""
    answer = None if inner is None else inner(*arguments)
    return await answer if isawaitable(answer) else answer


def _wrong_variable(error: ValueError) -> ConfigurationError:
    return ConfigurationError(f"traces: a variable of OpenTelemetry (OTEL_…) has a value that cannot be: {error}")


def _resource() -> Any:
    """Return what the spans are of: this program, unless the environment has another name for it."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = {"service.name": "pillarbox", "service.version": __version__}
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def _facts(session: Session) -> dict[str, AttributeValue]:
    """Return what is known of a session when it begins, by OpenTelemetry's names where it has one."""
    facts: dict[str, AttributeValue] = {
        "smtp.session.id": session.id,
        "network.protocol.name": "lmtp" if session.lmtp else "smtp",
        "network.transport": "tcp" if session.local_address else "unix",
    }
    for side, address, port in (
        ("client", session.remote_address, session.remote_port),
        ("server", session.local_address, session.local_port),
    ):
        if address:
            facts |= {f"{side}.address": address, f"{side}.port": port}
    return facts


def _last_facts(session: Session) -> dict[str, AttributeValue]:
    """Return what is known of a session when it is over."""
    facts: dict[str, AttributeValue] = {
        "tls.established": session.secure,
        "smtp.authenticated": session.user is not None,
        "smtp.transmission_type": session.transmission_type,
    }
    if session.tls is not None:
        facts |= {"tls.protocol.version": session.tls.version.removeprefix("TLSv"), "tls.cipher": session.tls.cipher}
    if session.error is not None:
        facts["smtp.last_error_code"] = int(session.error[:3])
    return facts


def _refused(refusal: Reject, default: int) -> tuple[str, int]:
    code = refusal.code or default
    return "refused" if code >= 500 else "deferred", code


def _accepted(answer: Any) -> tuple[str, int | None]:
    """Return what became of a message that was not refused as a whole; in LMTP each recipient has its own answer."""
    refusals = [each for each in answer if isinstance(each, Reject)] if isinstance(answer, list) else []
    if refusals and len(refusals) == len(answer):
        return _refused(refusals[0], 450)
    return "accepted", 250
