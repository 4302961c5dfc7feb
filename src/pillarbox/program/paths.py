"""Paths in URLs and settings: relative ones begin at the working directory, and ``~`` is the home directory.

And what targets and users both do with what is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from pillarbox import ConfigurationError

__all__ = ["can_be_named", "expanded", "local_path", "looks", "sync_folder"]


def local_path(url: str, example: str = "") -> Path:
    """Return the path in ``scheme:PATH``, also written ``scheme:///PATH``; raise ConfigurationError without one."""
    scheme, _, path = url.partition(":")
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host:
            raise ConfigurationError(f"{url!r}: a path is on this host: write {scheme}:PATH or {scheme}:///PATH")
        path = slash + path
    if not path or "\0" in path:
        hint = f", for example {scheme}:{example}" if example else ""
        raise ConfigurationError(f"{url!r} names no path: write {scheme}:PATH{hint}")
    return expanded(path, url)


def expanded(path: str, shown: str | None = None) -> Path:
    """Return the path that a text names; raise ConfigurationError, with what is shown, for what can be none here."""
    if "\0" in path:
        raise ConfigurationError(f"{shown or path!r}: no path holds a NUL")
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{shown or path!r}: there is no such home directory") from error
    if not can_be_named(found):
        raise ConfigurationError(f"{shown or path!r}: this locale has no such characters: set LC_ALL=C.UTF-8")
    return found


def can_be_named(path: Path) -> bool:
    """Whether the characters of a path exist in the encoding of file names, which the locale says."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def looks(*paths: str | None) -> tuple[object, ...]:
    """Return what changes when one of these files changes; None stands for no file."""
    return tuple(_look(expanded(path)) if path is not None else None for path in paths)


def _look(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    if os.name == "nt":  # Windows opens no folders; its file systems log their own changes
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
