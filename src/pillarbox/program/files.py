"""The files of keys and certificates that a configuration names: which they are, and when they have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pillarbox import Options
    from pillarbox.cli.config import Configuration

__all__ = ["PEM_OPTIONS", "changed", "is_pem", "named_by", "pem_files"]

PEM_OPTIONS = ("key", "cert", "ca")  # what may be a path, or the text itself
# How often they are looked at (seconds); a change is taken up at the second look that sees it. A renewal is no hurry,
# and such a look costs some microseconds. Looking, since what tells of changes by itself does not see those of a
# network's file system, nor those behind a symbolic link.
INTERVAL = 1.0
# How long (seconds) after a change that could not be used: who was silent, or away, may be there again.
AGAIN = 600.0

_Looks = dict[str, tuple[int, int, int] | None]


def pem_files(configuration: Configuration) -> list[str]:
    """Return the paths that the options of server and listeners name."""
    options = [configuration.options, *(listener.options for listener in configuration.listeners)]
    return list(dict.fromkeys(path for each in options for path in _of_options(each)))


def _of_options(options: Options) -> Iterable[str]:
    yield from _of_table({name: getattr(options, name) for name in PEM_OPTIONS})
    for entry in (options.sni_options or {}).values():
        if isinstance(entry, Mapping):
            yield from _of_table(entry)


def _of_table(table: Mapping[str, Any]) -> Iterable[str]:
    for name in PEM_OPTIONS:
        value = table.get(name)
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str) and not is_pem(each):
                yield each


def named_by(options: Options, file: str) -> list[str]:
    """Return the options that name a file."""
    direct = [name for name in PEM_OPTIONS if file in _of_table({name: getattr(options, name)})]
    return direct or (["sni_options"] if file in _of_options(options) else [])


def is_pem(value: str) -> bool:
    """Whether a text is a key or certificate itself, and no path."""
    return value.lstrip().startswith("-----BEGIN")


async def changed(files: Callable[[], Sequence[str]], tell: Callable[[], Awaitable[bool]]) -> None:
    """Await ``tell`` each time when some of the files have changed, and have stopped changing; never returns.

    Where it answers that they could not be used it is asked again after a while, also without another change.
    """
    loop = asyncio.get_running_loop()
    told = last = _look(files())  # at once: whoever begins to watch has just read them
    again: float | None = None
    while True:
        await asyncio.sleep(INTERVAL)
        try:
            now = await asyncio.to_thread(_look, files())
        except RuntimeError:  # the system has no more threads now
            continue
        told = {file: told.get(file, look) for file, look in now.items()}  # one that is new has just been read
        late = again is not None and loop.time() >= again
        # Key and certificate are two files: what was written a moment ago may be half of it.
        if now == last and (now != told or late):
            told = now
            again = None if await tell() else loop.time() + AGAIN
        last = now


def _look(files: Sequence[str]) -> _Looks:
    return {file: _facts(file) for file in files}


def _facts(file: str) -> tuple[int, int, int] | None:
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
