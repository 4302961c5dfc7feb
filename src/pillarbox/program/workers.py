"""The supervisor: it holds the sockets and the counts, and sees to it that so many workers are there.

All workers accept from the same listening sockets. With a socket for each (SO_REUSEPORT) the kernel deals connections
out by a hash: those of a worker that is dead or busy would wait for it while others have nothing to do. Here whoever is
free takes the next one, and what waits when a worker dies is taken by the others: nothing is lost.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pillarbox import BoundSockets, ConfigurationError, self_signed_certificate
from pillarbox.program import systemd
from pillarbox.program.channel import Channel, Handlers
from pillarbox.program.counts import WorkersCounts
from pillarbox.program.logs import log_to_stderr
from pillarbox.program.observed import Workers
from pillarbox.program.parts import START_TIME
from pillarbox.program.privileges import account
from pillarbox.program.processes import described, exit_of, spawn
from pillarbox.program.run import ProgramFailed, StopSignals, hear_hangup, on_hangup, read_again, watch_files
from pillarbox.program.running import bound_sockets
from pillarbox.program.worker import first_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from pillarbox.cli.config import Configuration

__all__ = ["Supervisor"]

# A worker that lived so long (seconds) is started again at once; one that did not waits, each time twice as long.
STABLE = 10.0
LONGEST_WAIT = 30.0
# So many workers may die before all were ready: then it is no accident.
QUICK_DEATHS = 3
# How long workers may take to end where the program cannot start.
LAST_WORDS = 5.0
# How long (seconds) a worker may take to answer a reload: longer than it gives its targets to start, so that it can say
# which of them hangs.
ANSWER_TIME = START_TIME + 10.0
# How long (seconds) a worker may take to end beyond close_timeout, for what is left then: its targets, users and spans.
CLOSING_TIME = 14.0

_log = logging.getLogger("pillarbox.program")


class Supervisor:
    """Runs so many workers of one configuration until a signal says otherwise."""

    def __init__(self, configuration: Configuration, number: int) -> None:
        self.configuration = configuration
        try:
            self.counts = WorkersCounts(number)
        except OSError as error:
            raise ProgramFailed(f"there is no memory that {number} workers could share: {error}") from error
        self.workers = [Slot(self, each) for each in range(1, number + 1)]
        self.pages = Workers(configuration, self.workers)
        self.stopping = False
        self.deaths = 0  # before all were ready
        self._bound: list[BoundSockets] = []
        self._made: asyncio.Task[dict[str, Any]] | None = None
        self._changing = asyncio.Lock()
        self._hearing: asyncio.Task[None] | None = None
        self._all_ready: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM; raise ConfigurationError where that cannot begin."""
        log_to_stderr(self.configuration.program, worker=0)  # from now on others write to it too
        self._all_ready = asyncio.get_running_loop().create_future()
        signals, self._hangup = StopSignals(self._kill), hear_hangup()
        stopped = asyncio.create_task(signals.stopped())
        watching = asyncio.create_task(self._watch())
        try:
            await self.pages.bind()
            self._bound = await bound_sockets(self.configuration.listeners)
            self.configuration = self._for_workers(self.configuration)
            lives = [slot.start() for slot in self.workers]
            await first_of(stopped, self._all_ready, *lives)
            if self._all_ready.done():
                self._all_ready.result()
                self._announce()
                self.pages.state = ""
            await first_of(stopped, *lives)
            for life in lives:
                if life.done():
                    life.result()  # it never ends so, but by a bug
            watching.cancel()
            await self._stop()
        except BaseException:
            stopped.cancel()
            await self._give_up()
            raise
        finally:
            watching.cancel()
            await self.pages.close()
        _log.info("closed")

    async def reload(self, configuration: Configuration) -> None:
        """Give all workers a configuration that was checked; raise ConfigurationError where one cannot have it.

        Addresses and the number of workers stay as they are.
        """
        async with self._changing:
            await self._go_over(configuration)

    async def renew(self) -> None:
        """Give all workers keys and certificates as they are in their files now; raises ConfigurationError."""
        async with self._changing:
            # Here, and not before: a reload that was under way may have brought another configuration.
            await self._go_over(self.configuration.with_files_again())

    async def _go_over(self, configuration: Configuration) -> None:
        if _addresses(configuration) != _addresses(self.configuration):
            raise ConfigurationError("other addresses than before: with workers they need a restart")
        configuration = self._for_workers(configuration)
        options = await self.options(configuration)
        # One that does not get ready has no answer. Perhaps its target hangs, and the new configuration has another.
        asked = {slot: slot.channel for slot in self.workers if slot.channel is not None and not slot.stuck}
        answers = self._ask(asked, configuration, options)
        if problems := await _problems(answers):
            answered = {slot: channel for slot, channel in asked.items() if answers[slot].done()}
            # Those that could have it go back. One that has not answered is told too, and not waited for.
            answers = self._ask(asked, self.configuration, options)
            for problem in await _problems({slot: answers[slot] for slot in answered}):
                _log.error("not all is as it was: %s", problem)
            raise ConfigurationError("; ".join(problems))
        self.configuration = configuration
        self._catch_up({slot for slot in self.workers if slot.channel is not asked.get(slot)}, options)
        log_to_stderr(configuration.program)

    def _catch_up(self, slots: set[Slot], options: Mapping[str, Any]) -> None:
        """Bring workers to the configuration that were not there when the others were asked."""
        for slot in slots:
            if slot.stuck:
                slot.again()
        began = {slot: slot.channel for slot in slots if slot.channel is not None and not slot.stuck}
        for slot, answer in self._ask(began, self.configuration, options).items():
            answer.add_done_callback(partial(_anew_if_wrong, slot))

    def _ask(
        self, channels: Mapping[Slot, Channel], configuration: Configuration, options: Mapping[str, Any]
    ) -> dict[Slot, asyncio.Future[str]]:
        snapshot = dict(configuration.snapshot)
        return {slot: channel.call("reload", snapshot, options) for slot, channel in channels.items()}

    def _for_workers(self, configuration: Configuration) -> Configuration:
        """Return a configuration for workers, with keys and certificates in it.

        They may give up root before they can read what only root may. And one that is started again is to have what the
        others have, whatever is in the files by then.
        """
        if configuration.program.user is not None:
            account(configuration.program.user)
        return configuration.with_files_read()

    async def _watch(self) -> None:
        await watch_files(lambda: self.configuration.files, self.renew)

    # --- Start

    async def options(self, configuration: Configuration) -> dict[str, Any]:
        """Return options of the workers' servers beside those of a configuration: made once, while they start."""
        if self._made is None:
            if not _needs_certificate(configuration):
                return {}
            self._made = asyncio.create_task(asyncio.to_thread(_certificate))
        return await asyncio.shield(self._made)

    @property
    def descriptors(self) -> list[list[int]]:
        """The listening sockets, for each listener its own."""
        return [[sock.fileno() for sock in bound.sockets] for bound in self._bound]

    def is_ready(self) -> None:
        """Note that one more worker is ready."""
        if self._all_ready is not None and not self._all_ready.done() and all(slot.ready for slot in self.workers):
            self._all_ready.set_result(None)

    @property
    def began(self) -> bool:
        """Whether all workers have been ready once."""
        return self._all_ready is not None and self._all_ready.done()

    def cannot_start(self, error: Exception) -> None:
        """End the program, which has not begun."""
        if self._all_ready is not None and not self._all_ready.done():
            self.stopping = True
            self._all_ready.set_exception(error)

    def _announce(self) -> None:
        from pillarbox.cli.addresses import address_text

        self._hearing = on_hangup(self._hangup, lambda: read_again(self.configuration, self.reload))
        _log.info("%d workers: %s", len(self.workers), ", ".join(f"{slot.name}" for slot in self.workers))
        for bound in self._bound:
            for address in bound.addresses:
                _log.info("listening on %s", address_text(address))
        systemd.notify("READY=1")

    # --- End

    async def _stop(self) -> None:
        self.stopping = True
        if self._hearing is not None:
            self._hearing.cancel()
        systemd.notify("STOPPING=1")
        self.pages.state = "closing"
        # The workers' own close: until all of them are closed, connections would come and nobody take them.
        self._close_sockets()
        for slot in self.workers:
            slot.stop()
        await self._all_ended()

    async def _all_ended(self) -> None:
        """Return when no worker is left; one that does not end by itself is killed."""
        ending = {asyncio.create_task(slot.ended()): slot for slot in self.workers}
        patience = self.configuration.options.close_timeout
        if patience is not None:
            patience += CLOSING_TIME
        _, late = await asyncio.wait(ending, timeout=patience)
        for each in late:
            _log.error("worker %s did not end within %g seconds: it is killed", ending[each].name, patience)
            ending[each].kill()
        if late:
            await asyncio.wait(late)

    async def _give_up(self) -> None:
        self.stopping = True
        self._close_sockets()
        for slot in self.workers:
            slot.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await asyncio.gather(*(slot.ended() for slot in self.workers))
        self._kill()

    def _close_sockets(self) -> None:
        for bound in self._bound:
            bound.close()

    def _kill(self) -> None:
        for slot in self.workers:
            slot.kill()


class Slot:
    """A worker's place: the process that has it, and the next one when that is dead."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self.number = number
        self.ready = False
        self.channel: Channel | None = None
        self._supervisor = supervisor
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._quick = 0  # deaths soon after a start, one after the other
        self._problem: str | None = None  # what the worker said
        self._anew = False  # it was told to end, so that one with another configuration can begin
        self._life: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The worker as the log calls it."""
        return f"{self.number} (pid {self._process.pid})" if self._process is not None else str(self.number)

    @property
    def stuck(self) -> bool:
        """Whether the worker has had the time to get ready, and has not."""
        return not self.ready and asyncio.get_running_loop().time() - self._began > START_TIME

    def start(self) -> asyncio.Task[None]:
        """Begin to have a worker, until ``stop``."""
        self._life = asyncio.create_task(self._live())
        return self._life

    def stop(self) -> None:
        """Let the worker end, and start none again."""
        if self.channel is not None:
            self.channel.tell("stop")
        elif self._life is not None:
            self._life.cancel()

    def again(self) -> None:
        """Let the worker end, and start one with the configuration as it is now."""
        if self.channel is not None:
            self._anew = True
            self.channel.tell("stop")

    async def ended(self) -> None:
        """Return when there is no worker any more."""
        if self._life is not None:
            await asyncio.wait([self._life])

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    # --- One life after the other

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._supervisor.stopping:
            self._began, self.ready, self._problem, self._anew = loop.time(), False, None, False
            try:
                status = await self._one_life()
            except OSError as error:  # the system has no more processes, or descriptors
                self._problem, status = str(error), 1
            if self._supervisor.stopping:
                return
            wait = self._wait_after(status, loop.time() - self._began)
            if wait is None:
                return
            await asyncio.sleep(wait)

    async def _one_life(self) -> int:
        """Start a process, and return its status when it is dead."""
        supervisor = self._supervisor
        ours, its = socket.socketpair()
        told: Handlers = {
            "ready": self._is_ready,
            "failed": self._failed,
            "counted": partial(supervisor.pages.note, self),
        }
        channel = await Channel.over(ours, told)
        self.channel = channel
        descriptors = supervisor.descriptors  # while the options are made the end may come, which closes them here
        try:
            with its:
                self._process = spawn(self.number, its.fileno(), descriptors, supervisor.counts.descriptors)
            exited = exit_of(self._process)
            configuration = supervisor.configuration
            options = await supervisor.options(configuration)
            memory = (len(supervisor.workers), supervisor.counts.descriptors)
            channel.tell("start", dict(configuration.snapshot), descriptors, options, *memory)
            return await exited
        finally:
            await self._heard_out(channel)
            self.channel = None
            supervisor.pages.ended(self)
            supervisor.counts.forget(self.number - 1)

    async def _heard_out(self, channel: Channel) -> None:
        """Let the channel end by itself: the last words may still be in it."""
        await asyncio.wait([channel.closed], timeout=1.0)
        channel.close()

    def _is_ready(self) -> None:
        self.ready = True
        if self._supervisor.began:
            _log.info("worker %s is ready", self.name)
        self._supervisor.is_ready()

    def _failed(self, problem: str) -> None:
        self._problem = problem
        self._supervisor.cannot_start(ConfigurationError(problem))

    def _wait_after(self, status: int, lived: float) -> float | None:
        """Log a death, and return the seconds until the next start; None where there will be none."""
        supervisor = self._supervisor
        if not supervisor.began:
            supervisor.deaths += 1
            if supervisor.deaths >= QUICK_DEATHS:
                problem = f"worker {self.name} {described(status)} before it was ready, as others did before it"
                supervisor.cannot_start(ProgramFailed(problem))
            return None if supervisor.began else 0.0
        if self._anew:
            _log.info("worker %s has ended; one with the new configuration is started", self.name)
            return 0.0
        self._quick = 0 if self.ready and lived >= STABLE else self._quick + 1
        wait = 0.0 if self._quick < 2 else min(LONGEST_WAIT, 2.0 ** (self._quick - 2))
        why = f"cannot start: {self._problem}" if self._problem is not None else described(status)
        when = f"in {wait:g} seconds" if wait else "now"
        _log.warning("worker %s %s; it is started again %s", self.name, why, when)
        return wait


async def _problems(answers: Mapping[Slot, asyncio.Future[str]]) -> list[str]:
    """Return what is wrong with a configuration, each of it once: what workers say, and who says nothing in time."""
    if answers:
        await asyncio.wait(answers.values(), timeout=ANSWER_TIME)
    return list(dict.fromkeys(problem for slot, answer in answers.items() if (problem := _problem(slot, answer))))


def _anew_if_wrong(slot: Slot, answer: asyncio.Future[str]) -> None:
    if _problem(slot, answer):
        slot.again()


def _problem(slot: Slot, answer: asyncio.Future[str]) -> str:
    if not answer.done():
        return f"worker {slot.name} did not answer within {ANSWER_TIME:g} seconds"
    error = answer.exception()
    if error is None:
        return answer.result()
    return "" if isinstance(error, ConnectionError) else str(error)  # who has died meanwhile starts anew


def _addresses(configuration: Configuration) -> list[str]:
    return [listener.address for listener in configuration.listeners]


def _needs_certificate(configuration: Configuration) -> bool:
    """Whether each worker would make one of its own."""
    options = [listener.options for listener in configuration.listeners]
    return configuration.options.cert is None and any(
        o.cert is None and ("STARTTLS" not in o.disabled_commands or (o.secure and not o.secured)) for o in options
    )


def _certificate() -> dict[str, Any]:
    """Return key and certificate for all workers."""
    key, cert = self_signed_certificate()
    return {"key": key.decode(), "cert": cert.decode()}
