"""The file of ``sqlite:PATH``: its tables, how it is opened, and what one transaction does. All of it blocks.

Only transactions that are committed count, and a commit returns when the disk has it: WAL with ``synchronous=FULL``.
SQLite's documentation of that setting: "WAL mode is always consistent with synchronous=NORMAL, but WAL mode does lose
durability. A transaction committed in WAL mode with synchronous=NORMAL might roll back following a power loss or
system crash." And: "With synchronous=FULL in WAL mode, an additional sync operation of the WAL file happens after each
transaction commit."
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pillarbox import ConfigurationError
from pillarbox.deliver.spool import Spool
from pillarbox.program.paths import sync_folder

__all__ = ["APPLICATION", "LOCKED", "VERSION", "MessageFile", "Row", "is_busy", "primary_code"]

LOCKED = 30.0  # seconds to wait for another writer
APPLICATION = 0x50426F78  # "PBox": PRAGMA application_id
VERSION = 1  # PRAGMA user_version
_LARGEST_WAL = 64 * 1024 * 1024  # bytes that stay on the disk when the WAL begins anew
_EXPIRED_AT_ONCE = 100  # messages that one transaction removes, or these octets and one message
_OCTETS_AT_ONCE = 64 * 1024 * 1024  # some builds of SQLite write over what is removed

_SEARCHED = "mail_from, rcpt_to, header_from, header_to, header_cc, subject, headers, text"
_OLD = ", ".join(f"old.{name}" for name in _SEARCHED.split(", "))
_NEW = ", ".join(f"new.{name}" for name in _SEARCHED.split(", "))

_SCHEMA = (
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: whoever reads can ask for what is above the last
        received_at TEXT NOT NULL,             -- UTC, "2026-03-07 08:05:03.123"
        log_id TEXT NOT NULL,                  -- as in the log and in Received
        session_id TEXT NOT NULL,
        client_address TEXT NOT NULL,          -- "" for a Unix socket
        client_name TEXT NOT NULL,             -- PTR name, or [address]
        helo TEXT,
        protocol TEXT NOT NULL,                -- SMTP, ESMTP, ESMTPSA, LMTP ...
        tls TEXT,                              -- "TLSv1.3", NULL without
        user TEXT COLLATE NOCASE,
        mail_from TEXT NOT NULL COLLATE NOCASE,
        rcpt_to TEXT NOT NULL,                 -- one address a line; one by one in the table recipients
        size INTEGER NOT NULL,                 -- octets of message_raw.raw
        message_id TEXT,
        date TEXT,
        subject TEXT,
        header_from TEXT,
        header_to TEXT,
        header_cc TEXT,
        headers TEXT NOT NULL,
        text TEXT NOT NULL
    )""",
    """
    CREATE TABLE recipients (
        message INTEGER NOT NULL,
        position INTEGER NOT NULL,
        address TEXT NOT NULL COLLATE NOCASE,
        PRIMARY KEY (message, position)
    ) WITHOUT ROWID""",
    "CREATE TABLE message_raw (id INTEGER PRIMARY KEY, raw BLOB NOT NULL)",
    "CREATE INDEX messages_received_at ON messages (received_at)",
    "CREATE INDEX messages_mail_from ON messages (mail_from)",
    "CREATE INDEX messages_message_id ON messages (message_id)",
    "CREATE INDEX recipients_address ON recipients (address)",
    f"""
    CREATE VIRTUAL TABLE search USING fts5 (
        {_SEARCHED}, content='messages', content_rowid='id', tokenize="unicode61 remove_diacritics 2"
    )""",
    # These also keep all in step when somebody else deletes a message.
    f"""
    CREATE TRIGGER messages_inserted AFTER INSERT ON messages BEGIN
        INSERT INTO search (rowid, {_SEARCHED}) VALUES (new.id, {_NEW});
    END""",  # noqa: S608 - the names are ours
    f"""
    CREATE TRIGGER messages_updated AFTER UPDATE ON messages BEGIN
        INSERT INTO search (search, rowid, {_SEARCHED}) VALUES ('delete', old.id, {_OLD});
        INSERT INTO search (rowid, {_SEARCHED}) VALUES (new.id, {_NEW});
    END""",  # noqa: S608 - the names are ours
    f"""
    CREATE TRIGGER messages_deleted AFTER DELETE ON messages BEGIN
        INSERT INTO search (search, rowid, {_SEARCHED}) VALUES ('delete', old.id, {_OLD});
        DELETE FROM recipients WHERE message = old.id;
        DELETE FROM message_raw WHERE id = old.id;
    END""",  # noqa: S608 - the names are ours
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)

_EXPIRE = """
    DELETE FROM messages WHERE id IN (
        SELECT id FROM (
            SELECT id, sum(size) OVER (ORDER BY received_at, id) - size AS octets_before FROM (
                SELECT id, received_at, size FROM messages WHERE received_at < datetime('now', ?)
                ORDER BY received_at, id LIMIT ?
            )
        ) WHERE octets_before < ?
    )"""


@dataclass(frozen=True, slots=True)
class Row:
    """A message as the file takes it."""

    columns: Mapping[str, str | int | None]
    recipients: Sequence[str]
    spool: Spool


class MessageFile:
    """One connection to the file; for one thread. Failures are sqlite3.Error and OSError."""

    def __init__(self, path: Path, keep_days: float | None = None) -> None:
        self.path = path.absolute()  # sqlite3 has a meaning of its own for names like ":memory:"
        self._keep_days = keep_days
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def open(self) -> None:
        """Open the file, and make it where there is none; raise ConfigurationError for one that is not ours."""
        _make(self.path)
        connection = sqlite3.connect(self.path, timeout=LOCKED, isolation_level=None)
        try:
            self._prepare(connection)
            self._identity = _identity(self.path)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Let go of the file; the last one to do so moves the WAL into it."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def store(self, rows: Sequence[Row]) -> list[int]:
        """Store all messages or none, and return their ids when they are durable."""
        with self._transaction() as connection:
            ids = [_insert(connection, row) for row in rows]
            self._expire(connection)
        return ids

    def remove(self, number: int) -> None:
        """Take a message out again."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM messages WHERE id = ?", (number,))

    def expire(self) -> None:
        """Remove all messages that are older than what is to be kept."""
        removed = self._keep_days is not None
        while removed:
            with self._transaction() as connection:
                removed = self._expire(connection)

    def _expire(self, connection: sqlite3.Connection) -> bool:
        """Remove some of the oldest; return whether there were any."""
        if self._keep_days is None:
            return False
        too_old = f"-{self._keep_days * 86_400:.0f} seconds"
        return connection.execute(_EXPIRE, (too_old, _EXPIRED_AT_ONCE, _OCTETS_AT_ONCE)).rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._ready()
        try:
            # At once as a writer: to become one later fails at once where another has written meanwhile.
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")  # where SQLite has not done so itself
            if not is_busy(error):
                with suppress(sqlite3.Error):
                    self.close()  # what is wrong with the disk or the file may be over with the next connection
            raise

    def _ready(self) -> sqlite3.Connection:
        """Return the connection; to a new file where the old one was moved or removed: nobody would find a message."""
        if self._connection is not None and _identity(self.path) != self._identity:
            self.close()
        if self._connection is None:
            self.open()
        assert self._connection is not None  # noqa: S101 - for the type
        return self._connection

    # --- Opening

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")  # or each question could be answered by another state of the file
        with connection:  # which commits, or rolls back
            _must_be_ours(connection, self.path)  # before anything is changed
        _patiently(connection, "PRAGMA journal_mode = WAL")
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            raise ConfigurationError(f"{self.path}: cannot have a write-ahead log: is it on a network file system?")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: its fsync alone does not reach the disk
        connection.execute(f"PRAGMA journal_size_limit = {_LARGEST_WAL}")
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            if _must_be_ours(connection, self.path):
                return
            for statement in _SCHEMA:
                connection.execute(statement)


def _make(path: Path) -> None:
    """Make an empty file for the owner alone."""
    try:
        # Only where there is none: "the close() system call will cancel all POSIX advisory locks on the same file for
        # all threads and all file descriptors in the process" (SQLite, How To Corrupt, 2.2), also those of others.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    except FileExistsError:
        return
    os.close(descriptor)
    sync_folder(path.parent)


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


def _must_be_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Tell whether the tables are there; raise ConfigurationError for another program's or a later version's."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == APPLICATION and version > VERSION:
        raise ConfigurationError(
            f"{path}: was made by a later pillarbox (its schema is {version}, this one knows {VERSION}):"
            " update pillarbox, or name another file"
        )
    if application != APPLICATION and (tables or application or version):
        raise ConfigurationError(f"{path}: is the database of another program: name a file of its own")
    return bool(tables)


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Execute what SQLite does not wait for by itself."""
    deadline = time.monotonic() + LOCKED
    while True:
        try:
            connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def is_busy(error: BaseException) -> bool:
    """Tell whether another writer was in the way."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def primary_code(error: BaseException) -> int:
    """Return SQLite's code of an error without its details, 0 for errors that are not SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


# --- One message


def _insert(connection: sqlite3.Connection, row: Row) -> int:
    names = ", ".join(row.columns)
    marks = ", ".join("?" * len(row.columns))
    insert = f"INSERT INTO messages ({names}) VALUES ({marks})"  # noqa: S608 - the names are ours
    number = connection.execute(insert, tuple(row.columns.values())).lastrowid
    assert number is not None  # noqa: S101 - for the type
    recipients = ((number, position, address) for position, address in enumerate(row.recipients))
    connection.executemany("INSERT INTO recipients VALUES (?, ?, ?)", recipients)
    _insert_raw(connection, number, row.spool)
    return number


def _insert_raw(connection: sqlite3.Connection, number: int, spool: Spool) -> None:
    insert = "INSERT INTO message_raw (id, raw) VALUES (?, "
    if not spool.on_disk:
        connection.execute(f"{insert}?)", (number, spool.read(0, spool.size)))
        return
    connection.execute(f"{insert}zeroblob(?))", (number, spool.size))
    with connection.blobopen("message_raw", "raw", number) as blob:
        for block in spool.blocks():
            blob.write(block)
