"""``pipe:COMMAND`` runs a command for each message, never through a shell; its exit status is the reply.

The command starts when the message is whole, so that it never sees half of one, and reads it from a file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from pillarbox import ConfigurationError, Recipient, Reject, Session, log_fields
from pillarbox.deliver import Message, Settings, Target, unavailable
from pillarbox.deliver.disk import Steps, Threads, refuses_all
from pillarbox.deliver.spool import Spool
from pillarbox.deliver.template import RECIPIENT_FIELDS, Template, clean_name, parts_of
from pillarbox.program.paths import can_be_named

__all__ = ["Pipe"]

FIELDS = RECIPIENT_FIELDS | {"user", "sender", "id", "client"}
MOST_ADDRESSES = 32_000  # octets of addresses for one run: what fits into one variable of the environment, amply
OUTPUT = 4096  # bytes of what a command says that are kept
PAUSE = 0.05  # seconds between two looks at a process, where the system cannot tell

_log = logging.getLogger("pillarbox.deliver")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Meaning(NamedTuple):
    code: int
    enhanced: str
    text: str


# What sysexits.h says of a status, with the enhanced codes that Postfix has for it (sys_exits.c). All others are 5.3.0.
_MEANINGS = {
    64: _Meaning(554, "5.3.0", "command line usage error"),
    65: _Meaning(554, "5.6.0", "data format error"),
    66: _Meaning(554, "5.3.0", "cannot open input"),
    67: _Meaning(550, "5.1.1", "user unknown"),
    68: _Meaning(550, "5.1.2", "host name unknown"),
    69: _Meaning(554, "5.3.0", "service unavailable"),
    70: _Meaning(554, "5.3.0", "internal software error"),
    71: _Meaning(451, "4.3.0", "system resource problem"),
    72: _Meaning(554, "5.3.0", "critical OS file missing"),
    73: _Meaning(550, "5.2.0", "cannot create user output file"),
    74: _Meaning(554, "5.3.0", "input/output error"),
    75: _Meaning(451, "4.3.0", "temporary failure"),
    76: _Meaning(554, "5.5.0", "remote error in protocol"),
    77: _Meaning(550, "5.7.0", "permission denied"),
    78: _Meaning(554, "5.3.5", "local configuration error"),
}
_OTHER = _Meaning(554, "5.3.0", "the command failed")


class PipeSettings(Settings):
    """What stands beside ``url`` in the file."""

    separator: str = Field(default="+", max_length=1)  # between {mailbox} and what follows it
    per: Literal["message", "recipient"] | None = None  # None: recipient where the command names one
    line_ends: Literal["lf", "crlf"] = "lf"
    processes: int = Field(default=10, ge=1)  # at the same time


class Pipe(Target):
    """The target ``pipe:COMMAND``; it is split into words once, as a shell would, and fields are filled in later."""

    Settings: ClassVar[type[Settings]] = PipeSettings

    def __init__(self, url: str, settings: PipeSettings | None = None) -> None:
        self.options = settings or PipeSettings()
        super().__init__(url, self.options)
        self._program, *words = _words(url)
        self._arguments = [Template(word, FIELDS, url) for word in words]
        named = frozenset(field for template in self._arguments for field in template.fields & RECIPIENT_FIELDS)
        if named and self.options.per == "message":
            raise ConfigurationError(
                f'{url}: {{{min(named)}}} is one recipient\'s: per = "message" does not go with it'
            )
        self._each = self.options.per == "recipient" or bool(named)
        self.slots = asyncio.Semaphore(self.options.processes)
        self.threads = Threads(url)

    async def start(self) -> None:
        """Find the command, once: what PATH says later is of no account."""
        if os.name != "posix":
            raise ConfigurationError(f"{self.url}: only POSIX systems have what pipe: needs")
        await asyncio.to_thread(self._find)

    def _find(self) -> None:
        found = shutil.which(self._program)
        if found is None:
            raise ConfigurationError(f"{self.url}: {self._program}: there is no such command, or it may not be run")
        self._program = str(Path(found).absolute())  # with its links: what a command is called can matter

    @property
    def verifies(self) -> bool:
        """Whether the command has fields."""
        return any(template.fields for template in self._arguments)

    async def verify(self, recipient: Recipient, session: Session) -> None:
        """Refuse an address that cannot stand in the command."""
        self._filled([recipient], session, "")

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        """Run the command, and return when it has ended."""
        delivery = _Delivery(self, message)
        try:
            answer = await delivery.run()
        except BaseException:
            await delivery.end()
            raise
        with suppress(asyncio.CancelledError):  # too late: it is delivered
            await delivery.end()
        return answer

    def runs(self, message: Message) -> Iterator[_Run]:
        """Give a run for each recipient, or for as many as the environment has room for."""
        some: list[Recipient] = []
        octets = 0
        for recipient in message.recipients:
            octets += len(recipient.address.encode()) + 1
            if some and (self._each or octets > MOST_ADDRESSES):
                yield _Run(some, message)
                some, octets = [], len(recipient.address.encode()) + 1
            some.append(recipient)
        yield _Run(some, message)

    def command(self, run: _Run) -> list[str]:
        """Return the words of the command; raise Reject where a field's value cannot stand there."""
        return [self._program, *self._filled(run.recipients, run.message.session, run.message.id)]

    def _filled(self, recipients: Sequence[Recipient], session: Session, message_id: str) -> list[str]:
        def value(field: str) -> str:
            if field in RECIPIENT_FIELDS:
                return clean_name(parts_of(recipients[0].address, self.options.separator)[field])
            return _value(field, session, message_id)

        words = []
        for template in self._arguments:
            word = template.filled(value)
            # The command would take it for an option; or it cannot be written in the locale's encoding.
            if (word.startswith("-") and not template.beginning().startswith("-")) or not can_be_named(Path(word)):
                raise Reject(553, "Error: this mailbox name is not allowed here", enhanced="5.1.3")
            words.append(word)
        return words


@dataclass(frozen=True)
class _Run:
    """One run of the command: whom it is for."""

    recipients: Sequence[Recipient]
    message: Message


def _words(url: str) -> list[str]:
    try:
        words = shlex.split(url.partition(":")[2])
    except ValueError as error:
        raise ConfigurationError(f"{url}: {error}") from error
    if not words or not words[0] or "\0" in url:
        raise ConfigurationError(f"{url!r} names no command: write pipe:COMMAND, for example pipe:/usr/bin/spamc")
    if Template(words[0], FIELDS, url).fields:
        raise ConfigurationError(f"{url}: which command it is cannot depend on the message")
    return words


def _value(field: str, session: Session, message_id: str) -> str:
    if field == "user":
        if session.user is None:
            # RFC 4954 6: "530 5.7.0 Authentication required"
            raise Reject(530, "Error: authentication Required", enhanced="5.7.0")
        return clean_name(str(session.user))
    if field == "id":
        return message_id
    return _plain(session.remote_address if field == "client" else str(session.envelope.mail_from or ""))


def _plain(text: str | None) -> str:
    return _CONTROL.sub("?", text or "")


def environment(run: _Run) -> dict[bytes, bytes]:
    """Return the command's whole environment: where programs are, and what Postfix's local(8) tells of a message."""
    session = run.message.session
    kept = {name: os.environb[name] for name in (b"HOME", b"LOGNAME", b"PATH", b"TZ", b"USER") if name in os.environb}
    told = {
        "SENDER": str(session.envelope.mail_from or ""),
        "CLIENT_ADDRESS": session.remote_address,
        "CLIENT_HOSTNAME": session.client_hostname,
        "CLIENT_HELO": session.host_name_appears_as,
        "CLIENT_PROTOCOL": session.transmission_type,
        "SASL_USERNAME": None if session.user is None else str(session.user),
        "MESSAGE_ID": run.message.id,
    }
    # No address holds a line end: one a line, so that each stays one, whatever it holds.
    recipients = "\n".join(_plain(recipient.address) for recipient in run.recipients)
    texts = {name: _plain(text) for name, text in told.items()} | {"LANG": "C.UTF-8", "RECIPIENT": recipients}
    # In UTF-8, as LANG says, whatever the program's own locale is.
    return kept | {name.encode(): text.encode("utf-8", "replace") for name, text in texts.items()}


# --- One delivery


class _Delivery:
    """The runs for one message; whatever still runs when it ends is killed, with all that it has started."""

    def __init__(self, target: Pipe, message: Message) -> None:
        self._target = target
        self._message = message
        self._steps = Steps(target.url, message.session, target.threads)
        lf = target.options.line_ends == "lf" and message.session.envelope.body_type != "binarymime"
        self._spool = Spool(self._steps, lf=lf)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[_Output] = []

    async def run(self) -> str | Sequence[str | Reject]:
        """Keep the message until it is whole, run the command, and say what came of it for each recipient."""
        commands = [(run, self._command(run)) for run in self._target.runs(self._message)]
        await self._spool.fill(self._message)
        tasks: list[asyncio.Task[str | Reject]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(self._result(run, command)) for run, command in commands]
        except asyncio.CancelledError:
            # What a command has done cannot be undone.
            some = self._message.session.lmtp and any(map(_has_taken_it, tasks))
            if not some and any(task.cancelled() for task in tasks):
                raise
        answers: list[str | Reject] = []
        for (run, _), task in zip(commands, tasks, strict=True):
            answer = self._steps.given_up() if task.cancelled() else task.result()
            if isinstance(answer, Reject) and refuses_all(answer, self._message):
                raise answer
            answers += [answer] * len(run.recipients)
        return answers

    def _command(self, run: _Run) -> list[str] | Reject:
        try:
            return self._target.command(run)
        except Reject as refusal:
            return refusal

    async def _result(self, run: _Run, command: list[str] | Reject) -> str | Reject:
        if isinstance(command, Reject):
            return command
        try:
            async with self._target.slots:
                await self._run(run, command)
        except Reject as refusal:
            return refusal
        return self._target.url

    async def _run(self, run: _Run, command: list[str]) -> None:
        output = _Output()
        self._outputs.append(output)
        try:
            process = await self._steps.run(self._begin, command, environment(run), output)
            status = await _ended(process)
        finally:
            said = output.close()
        refusal = _refusal(status)
        level = logging.INFO if refusal is None else logging.ERROR
        if said or refusal:
            fields = log_fields(self._message.session, "deliver", "deliver")
            _log.log(level, "%s ended with %s: %s", self._target.url, _shown(status), said or "no word", extra=fields)
        if refusal is not None:
            raise refusal

    def _begin(self, command: list[str], variables: Mapping[bytes, bytes], output: _Output) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own, in a thread: one that starts while all is given up is killed too."""
        descriptor = self._spool.descriptor()
        try:
            # Not the loop's own: uvloop hands descriptors down that are not meant for the command.
            process = subprocess.Popen(  # noqa: S603 - its words come from the configuration, and no shell sees them
                command,
                stdin=descriptor,
                stdout=output.descriptor,
                stderr=output.descriptor,
                env=variables,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
            output.is_handed_down()
        self._processes.append(process)
        return process

    async def end(self) -> None:
        """Kill what still runs, and forget the message."""
        await self._steps.end(self._clean)

    def _clean(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for output in self._outputs:
            output.is_handed_down()  # where no thread came to it
        self._spool.close()


def _has_taken_it(task: asyncio.Task[str | Reject]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and isinstance(task.result(), str)


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status, or the signal as a number below zero, when the process has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # no Linux, or one from before 2019
        while process.poll() is None:  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(PAUSE)
        return process.wait()
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    except asyncio.CancelledError:
        if process.poll() is None:  # else it comes too late
            raise
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


def _refusal(status: int) -> Reject | None:
    if status == 0:
        return None
    if status < 0:  # a signal, as Postfix has it too: the next attempt may go better
        return unavailable()
    code, enhanced, text = _MEANINGS.get(status, _OTHER)
    return Reject(code, f"Error: {text}", enhanced=enhanced)


def _shown(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"


class _Output:
    """What a command says: read while it runs, so that it never waits, and the beginning kept."""

    def __init__(self) -> None:
        self._reading, self.descriptor = os.pipe()
        os.set_blocking(self._reading, False)
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reading, self._read)

    def is_handed_down(self) -> None:
        """Close the end that the command has; not before it has it, as the number would soon be another file's."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _read(self) -> bool:
        try:
            block = os.read(self._reading, 64 * 1024)
        except BlockingIOError:
            return False
        self._kept += block[: OUTPUT - len(self._kept)]
        if not block:
            self._loop.remove_reader(self._reading)
        return bool(block)

    def close(self) -> str:
        """Return it; what a process in the background still says is not waited for."""
        for _ in range(16):  # a pipe holds no more, and whoever fills it meanwhile is no concern of ours
            if not self._read():
                break
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        return self._kept.decode("utf-8", "replace").strip()
