"""The SQLite target: rows that can be searched, octets that come back as they were, and many writers."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deliver.contract import started
from messages import begun, message, session_for
from pillarbox import ConfigurationError, MessageTooLarge, Reject, TLSInfo
from pillarbox.deliver import Target, sqlite_file, target_from_url
from pillarbox.deliver.sqlite import SQLite

ROOT = Path(__file__).parent.parent.parent
LETTER = (
    b"From: =?utf-8?q?=C3=84nne?= <anne@example.org>\r\nTo: b@example.com\r\nCc: Cleo <c@example.com>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= from Cologne\r\nMessage-ID: <1@example.org>\r\n"
    b"X-Campaign: summer\r\n\r\nThe invoice is attached.\r\n"
)
LARGE = b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 50_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
async def target(path: Path) -> AsyncIterator[Target]:
    async with started(f"sqlite:{path}") as target:
        yield target


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as connection:
        yield connection


def rows(path: Path, select: str, *values: object) -> list[tuple[object, ...]]:
    with opened(path) as connection:
        return connection.execute(select, values).fetchall()


def is_sound(path: Path) -> bool:
    """Tell whether the file and its index are what they should be; the index's check raises where it is not."""
    with opened(path) as connection:
        connection.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def numbered(number: int) -> bytes:
    return b"Subject: number %d\r\n\r\nHello %d.\r\n" % (number, number)


class TestStart:
    async def test_makes_the_file_for_the_owner_alone(self, path: Path, target: Target) -> None:
        await target.deliver(message(LETTER))
        for file in path.parent.iterdir():  # also the write-ahead log
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

    async def test_takes_what_is_there_and_leaves_one_file(self, path: Path) -> None:
        for _ in range(2):
            async with started(f"sqlite:{path}") as target:
                await target.deliver(message(LETTER))
        assert [file.name for file in path.parent.iterdir()] == ["mail.db"]
        assert rows(path, "SELECT id FROM messages") == [(1,), (2,)]

    async def test_is_durable_with_each_commit(self, path: Path, target: Target) -> None:
        assert isinstance(target, SQLite)

        def settings() -> list[tuple[int | str]]:
            connection = target._file._connection
            assert connection is not None
            return [connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")]

        assert await target._in_thread(settings) == [("wal",), (2,)]  # 2 is FULL

    @pytest.mark.parametrize(
        ("statements", "reason"),
        [
            (("CREATE TABLE x (y)",), "is the database of another program"),
            (("PRAGMA application_id = 5",), "is the database of another program"),
            (("PRAGMA user_version = 5",), "is the database of another program"),
            (
                (f"PRAGMA application_id = {sqlite_file.APPLICATION}", "PRAGMA user_version = 1000"),
                r"was made by a later pillarbox \(its schema is 1000, this one knows 1\)",
            ),
        ],
    )
    async def test_not_the_file_of_another_program(self, path: Path, statements: tuple[str], reason: str) -> None:
        with opened(path) as connection:
            for statement in statements:
                connection.execute(statement)
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match=reason):
            async with started(f"sqlite:{path}"):
                pass
        assert path.read_bytes() == before

    async def test_not_a_file_of_something_else(self, path: Path) -> None:
        path.write_bytes(b"To whom it may concern: this is no database.\n" * 100)
        with pytest.raises(ConfigurationError, match=r"mail\.db: is no SQLite database: name another file"):
            await target_from_url(f"sqlite:{path}").start()

    async def test_not_a_folder(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(ConfigurationError, match=r"mail\.db: cannot be opened: it is a folder"):
            await target_from_url(f"sqlite:{path}").start()

    async def test_not_without_its_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"x/mail\.db: no such folder: make it first"):
            await target_from_url(f"sqlite:{tmp_path}/x/mail.db").start()

    async def test_not_on_a_disk_that_is_read_only(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> None:
            raise sqlite_error(sqlite3.SQLITE_READONLY, "attempt to write a readonly database")

        monkeypatch.setattr(sqlite_file, "_patiently", fails)
        with pytest.raises(ConfigurationError, match="may not be written"):
            await target_from_url(f"sqlite:{path}").start()

    async def test_not_where_there_is_no_write_ahead_log(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_file, "_patiently", lambda *_: None)  # as a network file system does: nothing
        with pytest.raises(ConfigurationError, match="is it on a network file system"):
            await target_from_url(f"sqlite:{path}").start()

    async def test_not_without_full_text_search(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        missing = [text.replace("fts5", "fts5_of_tomorrow") for text in sqlite_file._SCHEMA]
        monkeypatch.setattr(sqlite_file, "_SCHEMA", missing)
        with pytest.raises(ConfigurationError, match=r"no full-text search \(FTS5\)"):
            await target_from_url(f"sqlite:{path}").start()
        assert rows(path, "SELECT name FROM sqlite_master") == []

    async def test_not_while_another_program_holds_it(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_file, "LOCKED", 0.05)
        with opened(path) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(ConfigurationError, match="another program holds it locked"):
                await target_from_url(f"sqlite:{path}").start()

    async def test_many_at_once_make_it_together(self, path: Path) -> None:
        targets = [target_from_url(f"sqlite:{path}") for _ in range(8)]
        await asyncio.gather(*(target.start() for target in targets))
        await asyncio.gather(*(target.deliver(message(LETTER)) for target in targets))
        await asyncio.gather(*(target.close() for target in targets))
        assert len(rows(path, "SELECT * FROM messages")) == 8
        assert is_sound(path)


class TestURL:
    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("sqlite:mail.db", "mail.db"),
            ("sqlite:./a b%20?mode=ro", "a b%20?mode=ro"),
            ("SQLite:/var/mail/in.db", "/var/mail/in.db"),
            ("sqlite:///var/mail/in.db", "/var/mail/in.db"),
        ],
    )
    def test_path(self, url: str, path: str) -> None:
        target = target_from_url(url)
        assert isinstance(target, SQLite)
        assert target.path == Path(path)

    @pytest.mark.parametrize("url", ["sqlite:", "sqlite://", "sqlite:x/", "sqlite://host/x", "sqlite:a\0b"])
    def test_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="sqlite:"):
            target_from_url(url)

    def test_no_such_home(self) -> None:
        with pytest.raises(ConfigurationError, match="no such home directory"):
            target_from_url("sqlite:~nobody-here/x")

    async def test_memory_is_a_name_like_any_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        async with started("sqlite::memory:") as target:
            await target.deliver(message(LETTER))
        assert [file.name for file in tmp_path.iterdir()] == [":memory:"]

    @pytest.mark.parametrize("days", [0, -1, 1e9, "30"])
    def test_days_to_keep(self, days: object) -> None:
        with pytest.raises(ConfigurationError, match="keep_days"):
            target_from_url("sqlite:x", {"keep_days": days})


class TestRows:
    async def test_who_and_when_and_what(self, path: Path, target: Target) -> None:
        session = session_for("b@example.com", "C@Example.com", sender="a@example.org")
        session.remote_address, session.client_hostname = "192.0.2.7", "host7.example.net"
        session.host_name_appears_as, session.opening_command = "client.example.org", "EHLO"
        session.secure, session.tls = True, TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
        session.user = session.username = "joe"
        assert await target.deliver(message(LETTER, session=session)) == f"sqlite:{path}#1"
        with opened(path) as connection:
            connection.row_factory = sqlite3.Row
            row = dict(connection.execute("SELECT * FROM messages").fetchone())
            (age,) = connection.execute("SELECT unixepoch() - unixepoch(received_at) FROM messages").fetchone()
        assert 0 <= age <= 20
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", row.pop("received_at"))
        assert row.pop("headers").splitlines()[3] == "Subject: Grüße from Cologne"
        assert row == {
            "id": 1,
            "log_id": f"{session.id}.1",
            "session_id": session.id,
            "client_address": "192.0.2.7",
            "client_name": "host7.example.net",
            "helo": "client.example.org",
            "protocol": "ESMTPSA",
            "tls": "TLSv1.3",
            "user": "joe",
            "mail_from": "a@example.org",
            "rcpt_to": "b@example.com\nC@Example.com",
            "size": len(LETTER),
            "message_id": "<1@example.org>",
            "date": None,
            "subject": "Grüße from Cologne",
            "header_from": "Änne <anne@example.org>",
            "header_to": "b@example.com",
            "header_cc": "Cleo <c@example.com>",
            "text": "The invoice is attached.\r\n",
        }

    @pytest.mark.parametrize("content", [LETTER, LARGE, b"", bytes(range(256)) * 3000, b"\0"])
    async def test_the_octets_come_back_as_they_were(self, path: Path, target: Target, content: bytes) -> None:
        await target.deliver(message(*(content[start : start + 10_000] for start in range(0, len(content), 10_000))))
        assert rows(path, "SELECT raw, typeof(raw), size FROM message_raw JOIN messages USING (id)") == [
            (content, "blob", len(content))
        ]

    @pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the program sqlite3 is not here")
    async def test_the_octets_come_back_by_the_command_line_too(self, path: Path, target: Target) -> None:
        await target.deliver(message(LARGE))
        select = "SELECT writefile('out.eml', raw) FROM message_raw WHERE id = 1"
        subprocess.run(["sqlite3", str(path), select], cwd=path.parent, check=True, capture_output=True)
        assert (path.parent / "out.eml").read_bytes() == LARGE

    @pytest.mark.parametrize(
        "query",
        [
            "invoice",
            "INVOICE attached",
            "subject:grüße",
            "subject:gruße",
            '"anne@example.org"',
            "mail_from:example",
            "rcpt_to:b",
            'headers:"x campaign summer"',
            "inv*",
            "header_cc:cleo",
            "invoice NOT nonsense",
        ],
    )
    async def test_full_text_search(self, path: Path, target: Target, query: str) -> None:
        await target.deliver(message(numbered(1), session=session_for("z@other.test", sender="z@other.test")))
        await target.deliver(message(LETTER))
        assert rows(path, "SELECT rowid FROM search(?)", query) == [(2,)]

    async def test_search_by_recipient_and_sender_ignores_case(self, path: Path, target: Target) -> None:
        await target.deliver(message(LETTER, session=session_for("One@Example.com", "two@example.com")))
        assert rows(path, "SELECT message, position FROM recipients WHERE address = 'TWO@example.com'") == [(1, 1)]
        assert rows(path, "SELECT id FROM messages WHERE mail_from = 'A@EXAMPLE.ORG'") == [(1,)]

    async def test_what_is_no_text_is_stored_all_the_same(self, path: Path, target: Target) -> None:
        session = session_for('"\ud800\0"@example.com')
        session.host_name_appears_as = "\0\udcff"
        await target.deliver(message(b"Subject: \xff\0\r\n\r\n\xff\0", session=session))
        assert rows(path, "SELECT rcpt_to, helo, subject FROM messages") == [
            ('"?\ufffd"@example.com', "\ufffd?", "\ufffd\ufffd")
        ]
        assert is_sound(path)

    async def test_a_message_that_is_deleted_is_gone_everywhere(self, path: Path, target: Target) -> None:
        for number in range(3):
            await target.deliver(message(numbered(number)))
        with opened(path) as connection:
            connection.execute("DELETE FROM messages WHERE id = 2")
            connection.execute("UPDATE messages SET subject = 'another' WHERE id = 3")
        await target.deliver(message(numbered(3)))
        for table in ("messages", "message_raw"):
            assert rows(path, f"SELECT id FROM {table}") == [(1,), (3,), (4,)]
        assert rows(path, "SELECT message FROM recipients") == [(1,), (3,), (4,)]
        assert rows(path, "SELECT rowid FROM search('number')") == [(1,), (3,), (4,)]  # it stands in the headers too
        assert rows(path, "SELECT rowid FROM search('subject:number')") == [(1,), (4,)]
        assert is_sound(path)

    async def test_the_statements_of_the_page_work(self, path: Path, target: Target) -> None:
        await target.deliver(message(LETTER))
        page = (ROOT / "docs" / "target-sqlite.md").read_text(encoding="utf-8")
        statements = [
            statement
            for block in re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
            for statement in re.split(r";(?: *--.*)?\n", block)
            if statement.strip()
        ]
        assert len(statements) > 8
        for statement in statements:
            with opened(path) as connection:
                connection.create_function("writefile", 2, lambda name, octets: (name, len(octets))[1])
                assert connection.execute(statement).fetchall() or "SELECT" not in statement, statement

    async def test_the_function_of_the_page_works(self, path: Path, target: Target) -> None:
        await target.deliver(message(LARGE))
        page = (ROOT / "docs" / "target-sqlite.md").read_text(encoding="utf-8")
        [code] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        names: dict[str, Any] = {}
        exec(code, names)
        names["save"](str(path), 1, str(path.with_name("out.eml")))
        assert path.with_name("out.eml").read_bytes() == LARGE

    async def test_old_messages_expire(self, path: Path) -> None:
        async with started(f"sqlite:{path}", keep_days=30) as target:
            for number in range(3):
                await target.deliver(message(numbered(number)))
            with opened(path) as connection:
                connection.execute("UPDATE messages SET received_at = datetime('now', '-31 days') WHERE id = 1")
                connection.execute("UPDATE messages SET received_at = datetime('now', '-29 days') WHERE id = 2")
            await target.deliver(message(numbered(3)))
            assert rows(path, "SELECT id FROM messages") == [(2,), (3,), (4,)]
        async with started(f"sqlite:{path}", keep_days=0.5):
            assert rows(path, "SELECT id FROM message_raw") == [(3,), (4,)]
        assert is_sound(path)

    @pytest.mark.parametrize(("name", "most"), [("_EXPIRED_AT_ONCE", 2), ("_OCTETS_AT_ONCE", 40)])
    async def test_they_expire_little_by_little_and_all_at_the_start(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
    ) -> None:
        monkeypatch.setattr(sqlite_file, name, most)
        async with started(f"sqlite:{path}", keep_days=1) as target:
            for number in range(9):
                await target.deliver(message(numbered(number)))  # 31 octets
            with opened(path) as connection:
                connection.execute("UPDATE messages SET received_at = datetime('now', '-2 days', id || ' seconds')")
            await target.deliver(message(numbered(9)))
            assert rows(path, "SELECT min(id), count(*) FROM messages") == [(3, 8)]
        async with started(f"sqlite:{path}", keep_days=1):
            assert rows(path, "SELECT id FROM messages") == [(10,)]


class TestMany:
    async def test_those_that_wait_share_a_commit(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        store = sqlite_file.MessageFile.store

        def noted(self: sqlite_file.MessageFile, given: list[sqlite_file.Row]) -> list[int]:
            sizes.append(len(given))
            return store(self, given)

        monkeypatch.setattr(sqlite_file.MessageFile, "store", noted)
        with held(target):
            deliveries = [asyncio.create_task(_deliver(target, number)) for number in range(250)]
            await until_waiting(target, 250)
        places = await asyncio.gather(*deliveries)
        assert sizes == [100, 100, 50]
        assert [place.rpartition("#")[2] for place in places] == [str(number + 1) for number in range(250)]

    async def test_a_transaction_is_bounded_in_octets(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pillarbox.deliver.sqlite.OCTETS_TOGETHER", 50)
        assert isinstance(target, SQLite)
        with held(target):
            deliveries = [asyncio.create_task(_deliver(target, number)) for number in range(4)]
            await until_waiting(target, 4)
            taken = target._taken()
            assert len(taken) == 2  # of 31 octets each
            target._waiting.extendleft(reversed(taken))
        await asyncio.gather(*deliveries)
        assert len(rows(path, "SELECT id FROM messages")) == 4

    async def test_one_that_cannot_be_stored_does_not_harm_the_others(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        insert = sqlite_file._insert

        def fails_for_one(connection: sqlite3.Connection, row: sqlite_file.Row) -> int:
            number = insert(connection, row)
            if row.columns["subject"] == "number 1":
                raise sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full")
            return number

        monkeypatch.setattr(sqlite_file, "_insert", fails_for_one)
        with held(target):
            deliveries = [asyncio.create_task(_deliver(target, number)) for number in range(3)]
            await until_waiting(target, 3)
        answers = await asyncio.gather(*deliveries, return_exceptions=True)
        assert [type(answer) for answer in answers] == [str, Reject, str]
        assert rows(path, "SELECT subject FROM messages") == [("number 0",), ("number 2",)]
        assert is_sound(path)

    async def test_processes_write_together_while_others_read_and_write(self, path: Path, target: Target) -> None:
        """Two further processes, this one, a foreign writer, and a reader whose view stays what it was."""
        code = f"""if True:
            import asyncio, sys
            sys.path[:0] = {[str(ROOT / "tests")]!r}
            from deliver.contract import started
            from messages import message
            async def main():
                async with started("sqlite:{path}") as target:
                    await asyncio.gather(*(target.deliver(message(b"Subject: theirs\\r\\n\\r\\n")) for _ in range(40)))
            asyncio.run(main())
            """
        await target.deliver(message(LETTER))
        processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", code) for _ in range(2)]
        with opened(path) as reader, opened(path) as writer:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
            for number in range(20):
                await asyncio.gather(*(_deliver(target, number) for _ in range(2)))
                await asyncio.to_thread(_foreign_write, path, number)
            assert [await asyncio.wait_for(process.wait(), 30) for process in processes] == [0, 0]
            assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
            reader.execute("COMMIT")
            assert writer.execute("SELECT count(*) FROM messages").fetchone() == (1 + 80 + 40,)
            assert writer.execute("SELECT count(*) FROM messages WHERE user = 'seen'").fetchone() == (20,)
        assert is_sound(path)

    async def test_another_writer_is_waited_for(self, path: Path, target: Target) -> None:
        with opened(path) as other:
            other.execute("BEGIN IMMEDIATE")
            delivery = asyncio.create_task(_deliver(target, 1))
            await asyncio.wait([delivery], timeout=0.05)
            assert not delivery.done()
            other.execute("COMMIT")
            await delivery
        assert len(rows(path, "SELECT * FROM messages")) == 1

    async def test_but_not_for_ever(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(sqlite_file, "LOCKED", 0.05)
        async with started(f"sqlite:{path}") as target:
            with opened(path) as other:
                other.execute("BEGIN IMMEDIATE")
                answers = await asyncio.gather(*(_deliver(target, n) for n in range(3)), return_exceptions=True)
                assert [str(answer)[:9] for answer in answers] == ["451 4.3.0"] * 3
                other.execute("COMMIT")
            assert "database is locked" in caplog.text
            await _deliver(target, 3)
        assert rows(path, "SELECT subject FROM messages") == [("number 3",)]


class TestFailure:
    @pytest.mark.parametrize(
        ("code", "reply"),
        [
            (sqlite3.SQLITE_FULL, "452 4.3.1"),
            (sqlite3.SQLITE_IOERR_SHMSIZE, "452 4.3.1"),
            (sqlite3.SQLITE_IOERR_WRITE, "451 4.3.0"),
            (sqlite3.SQLITE_CORRUPT, "451 4.3.0"),
            (sqlite3.SQLITE_READONLY, "451 4.3.0"),
        ],
    )
    async def test_is_a_reply_and_a_log_line(
        self,
        path: Path,
        target: Target,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        code: int,
        reply: str,
    ) -> None:
        def fails(*_: object) -> None:
            raise sqlite_error(code, "the secret inside")

        with monkeypatch.context() as broken:
            broken.setattr(sqlite_file, "_insert_raw", fails)
            with pytest.raises(Reject) as refused:
                await target.deliver(message(LETTER))
        assert str(refused.value).startswith(reply)
        assert "secret" not in str(refused.value)
        (record,) = caplog.records
        assert "the secret inside" in record.getMessage()
        assert target.url in record.getMessage()
        await target.deliver(message(LETTER))  # with a new connection
        assert len(rows(path, "SELECT * FROM message_raw")) == 1

    async def test_a_message_larger_than_sqlite_takes(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        insert = sqlite_file._insert_raw

        def with_limit(connection: sqlite3.Connection, *given: object) -> None:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 500_000)
            insert(connection, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(sqlite_file, "_insert_raw", with_limit)
        with pytest.raises(MessageTooLarge):
            await target.deliver(message(LARGE[:300_000], LARGE[300_000:]))
        assert rows(path, "SELECT * FROM messages") == []

    async def test_a_file_that_is_moved_away_is_begun_anew(self, path: Path, target: Target) -> None:
        """As who rotates a log would do; the message goes where somebody will look for it."""
        await _deliver(target, 1)
        path.rename(path.with_suffix(".old"))
        await _deliver(target, 2)
        assert rows(path, "SELECT subject FROM messages") == [("number 2",)]

    async def test_the_spool_of_a_large_one_has_no_name(self, path: Path, target: Target) -> None:
        delivery = await begun(target, *(LARGE[start : start + 65_536] for start in range(0, len(LARGE), 65_536)))
        assert {file.name for file in path.parent.iterdir()} <= {"mail.db", "mail.db-wal", "mail.db-shm"}
        assert rows(path, "SELECT * FROM messages") == []
        await delivery.abort()

    async def test_the_event_loop_goes_on_while_the_disk_hangs(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pillarbox.deliver.PATIENCE_WITH_CLEANING", 0.05)
        with held(target):
            delivery = await begun(target, LETTER)
            committing = asyncio.ensure_future(delivery.commit())
            await until_waiting(target, 1)
            await delivery.cancel()
            assert delivery.task.cancelled()
            await asyncio.wait([committing])
        assert isinstance(target, SQLite)
        await target._in_thread(int)  # what was to clean up has gone on meanwhile
        assert rows(path, "SELECT * FROM messages") == []

    async def test_what_was_given_up_is_not_taken_along_by_another(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody sees a row of it, not even for a moment: its octets are forgotten by then."""
        monkeypatch.setattr("pillarbox.deliver.PATIENCE_WITH_CLEANING", 0.05)
        with held(target):
            first = asyncio.create_task(_deliver(target, 1))
            await until_waiting(target, 1)
            delivery = await begun(target, numbered(2))
            committing = asyncio.ensure_future(delivery.commit())
            await until_waiting(target, 2)
            await delivery.cancel()
        await asyncio.wait([committing, first])
        assert rows(path, "SELECT id, subject FROM messages") == [(1, "number 1")]
        assert rows(path, "SELECT seq FROM sqlite_sequence") == [(1,)]

    async def test_what_was_stored_and_not_told_is_taken_out_again(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop, stored, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        store = sqlite_file.MessageFile.store

        def slow(self: sqlite_file.MessageFile, given: list[sqlite_file.Row]) -> list[int]:
            ids = store(self, given)
            loop.call_soon_threadsafe(stored.set)
            assert go_on.wait(10)
            return ids

        monkeypatch.setattr(sqlite_file.MessageFile, "store", slow)
        delivery = await begun(target, LETTER)
        committing = asyncio.ensure_future(delivery.commit())
        await stored.wait()
        assert len(rows(path, "SELECT * FROM messages")) == 1
        delivery.task.cancel()
        go_on.set()
        await asyncio.wait([committing, delivery.task])
        assert delivery.task.cancelled()
        assert rows(path, "SELECT id FROM messages UNION SELECT id FROM message_raw") == []
        assert is_sound(path)

    async def test_what_cannot_be_taken_out_again_is_a_line_in_the_log(
        self, path: Path, target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(*_: object) -> None:
            raise sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")

        monkeypatch.setattr(sqlite_file.MessageFile, "remove", fails)
        with held(target):
            delivery = await begun(target, LETTER)
            committing = asyncio.ensure_future(delivery.commit())
            await until_waiting(target, 1)
            second = asyncio.create_task(_deliver(target, 2))  # takes the first along
            await until_waiting(target, 2)
            delivery.task.cancel()
        await asyncio.wait([committing, second])
        assert delivery.task.cancelled()
        assert f"cannot take a message out of {target.url} again: disk I/O error" in caplog.text


def test_a_large_message_needs_little_memory(tmp_path: Path) -> None:
    """50 MB, in a process of its own, as SQLite's memory is not Python's."""
    pytest.importorskip("resource", reason="the system does not say how much memory was needed")
    code = f"""if True:
        import asyncio, resource, sys
        sys.path[:0] = {[str(ROOT / "tests")]!r}
        from deliver.contract import started
        from messages import message
        async def main():
            async with started("sqlite:{tmp_path}/mail.db") as target:
                await target.deliver(message(b"Subject: first\\r\\n\\r\\n", *[b"x" * 65_534 + b"\\r\\n"] * 10))
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                await target.deliver(message(b"Subject: large\\r\\n\\r\\n", *[b"x" * 65_534 + b"\\r\\n"] * 800))
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        asyncio.run(main())
        """
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 16 * 1024 * 1024
    assert rows(tmp_path / "mail.db", "SELECT length(raw) > 52000000 FROM message_raw WHERE id = 2") == [(1,)]


# --- Helpers


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


async def _deliver(target: Target, number: int) -> str:
    place = await target.deliver(message(numbered(number)))
    assert isinstance(place, str)
    return place


def _foreign_write(path: Path, number: int) -> None:
    with opened(path) as connection:
        connection.execute("UPDATE messages SET user = 'seen' WHERE id = ?", (number + 1,))


@contextmanager
def held(target: Target) -> Iterator[None]:
    """Hold the target's thread."""
    assert isinstance(target, SQLite)
    assert target._thread is not None
    go_on = threading.Event()
    target._thread.submit(go_on.wait, 10)
    try:
        yield
    finally:
        go_on.set()


async def until_waiting(target: Target, count: int) -> None:
    """Wait until so many messages are whole and wait to be stored."""
    assert isinstance(target, SQLite)
    async with asyncio.timeout(10):
        while len(target._waiting) < count:
            await asyncio.sleep(0)
