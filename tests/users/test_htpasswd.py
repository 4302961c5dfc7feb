"""``htpasswd:PATH``: real files, real hashes, and clients that log in."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from codecs import BOM_UTF8
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import argon2
import bcrypt
import pytest

from interop.peers import program, run
from pillarbox import AuthRequest, ConfigurationError, Reject, ScramKeys
from pillarbox.users import Chain, users_from_url, watched
from pillarbox.users.accounts import parse_accounts
from pillarbox.users.checking import Checking
from pillarbox.users.editing import lines_of
from pillarbox.users.passwords import Secret
from support import TIMEOUT, b64, recorded
from users.logins import LATER, WELCOME, WRONG, asking, by_smtplib, offered, plain, scram, session, started

PASSWORD = "correct horse"


def argon2_of(password: str, *, memory: int = 64, passes: int = 1) -> str:
    return argon2.PasswordHasher(memory_cost=memory, time_cost=passes, parallelism=1).hash(password)


def bcrypt_of(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def keys_of(password: str, **more: Any) -> str:
    return str(ScramKeys.from_password(password, iterations=more.pop("iterations", 4096), **more))


ARGON2, BCRYPT, KEYS = argon2_of(PASSWORD), bcrypt_of(PASSWORD), keys_of(PASSWORD)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.touch(0o600)
    return path


def backend(file: Path, **settings: Any) -> Any:
    return users_from_url(f"htpasswd:{file}", settings)


def settled(file: Path) -> None:
    """Give a file the age from which one look is enough to know that it is unchanged."""
    before = time.time() - 60
    os.utime(file, (before, before))


class TestLogin:
    @pytest.mark.parametrize(
        "secret",
        [
            ARGON2,
            argon2.PasswordHasher(memory_cost=64, time_cost=1, parallelism=2, type=argon2.Type.I).hash(PASSWORD),
            BCRYPT,
            BCRYPT.replace("$2b$", "$2y$"),  # as Apache's htpasswd writes it
            KEYS,
            keys_of(PASSWORD, hash="sha1"),
        ],
        ids=["argon2id", "argon2i", "bcrypt", "2y", "SCRAM-SHA-256", "SCRAM-SHA-1"],
    )
    async def test_every_kind_of_secret_checks_a_password(self, file: Path, secret: str) -> None:
        file.write_text(f"# people\n\nalice:{secret}\r\nbob:{argon2_of('other')}\n")
        async with asking(backend(file)) as served:
            assert await plain(served, "alice", PASSWORD) == WELCOME
            assert await plain(served, "alice", "wrong") == WRONG
            assert await plain(served, "bob", PASSWORD) == WRONG
            assert await plain(served, "nobody", PASSWORD) == WRONG
            assert await plain(served, "alice", "control\tcharacters") == WRONG
            assert await by_smtplib(served, "alice", PASSWORD) == 235
            assert await by_smtplib(served, "alice", "wrong") == 535

    async def test_gsasl_logs_in(self, file: Path) -> None:
        found = program("gsasl", "gsasl")
        file.write_text(f"alice:{ARGON2}\nalice:{KEYS}\n")
        async with asking(backend(file)) as served:
            place = (found, "--smtp", "--no-starttls", f"--connect=127.0.0.1:{served.address[1]}", "--no-cb")
            for method in ("PLAIN", "LOGIN", "SCRAM-SHA-256"):
                for password, succeeds in ((PASSWORD, True), ("wrong", False)):
                    credential = ("--authentication-id", "alice", "--password", password)
                    name = ("--authorization-id", "") if method == "PLAIN" else ()
                    outcome = await asyncio.to_thread(run, [*place, "--mechanism", method, *credential, *name])
                    assert (outcome.status == 0) is succeeds, (method, outcome.output)

    async def test_the_name_is_prepared_before_it_is_looked_for(self, file: Path) -> None:
        file.write_text(f"jos\N{LATIN SMALL LETTER E WITH ACUTE}:{KEYS}\n", encoding="utf-8")
        seen: list[Any] = []
        async with asking(backend(file), on_mail_from=lambda _, session: seen.append(session.user)) as served:
            client = await served.hello()
            typed = "jose\N{COMBINING ACUTE ACCENT}"
            assert await client.say("AUTH PLAIN " + b64(f"\0{typed}\0{PASSWORD}")) == WELCOME
            await client.say("MAIL FROM:<a@example.com>")
            assert await scram(served, typed, PASSWORD) == WELCOME
            assert await plain(served, "jos\x7f", PASSWORD) == "500 Error: invalid userdata"
            assert await plain(served, "\N{LATIN SMALL LETTER A}\N{HEBREW LETTER ALEF}", PASSWORD) == WRONG
        assert seen == ["jos\N{LATIN SMALL LETTER E WITH ACUTE}"]

    @pytest.mark.parametrize("stored", ["\N{ANGSTROM SIGN}ngstr\N{LATIN SMALL LETTER O WITH DIAERESIS}m", "\N{KEY}key"])
    async def test_a_password_may_have_been_hashed_as_it_was_typed(self, file: Path, stored: str) -> None:
        file.write_text(f"alice:{bcrypt_of(stored)}\n")
        async with asking(backend(file)) as served:
            assert await plain(served, "alice", stored) == WELCOME

    async def test_nobody_acts_as_somebody_else(self, file: Path) -> None:
        file.write_text(f"alice:{ARGON2}\nalice:{KEYS}\n")
        async with asking(backend(file)) as served:
            assert await plain(served, "alice", PASSWORD, authzid="alice") == WELCOME
            assert await plain(served, "alice", PASSWORD, authzid="bob") == WRONG
            assert await scram(served, "alice", PASSWORD, header="n,a=alice,") == WELCOME
            assert await scram(served, "alice", PASSWORD, header="n,a=bob,") == WRONG

    async def test_an_empty_password_fits_nothing(self, file: Path) -> None:
        file.write_text(f"alice:{bcrypt_of('')}\n")
        async with asking(backend(file)) as served:
            assert await plain(served, "alice", "") == WRONG

    async def test_bcrypt_looks_at_72_octets(self, file: Path) -> None:
        file.write_text(f"alice:{bcrypt_of('x' * 72)}\n")
        async with asking(backend(file)) as served:
            assert await plain(served, "alice", "x" * 500) == WELCOME  # as with every other program that reads it
            assert await plain(served, "alice", "x" * 71) == WRONG

    async def test_an_empty_file_lets_nobody_in(self, file: Path) -> None:
        settled(file)
        async with asking(backend(file)) as served:
            assert await plain(served, "alice", PASSWORD) == WRONG

    @pytest.mark.promises("Users", "No password, token or key stands in a log.")
    async def test_no_secret_reaches_a_log(self, file: Path) -> None:
        file.write_text(f"alice:{ARGON2}\nbob:{KEYS}\n")
        with recorded(logging.DEBUG) as records:
            async with asking(backend(file)) as served:
                await plain(served, "alice", PASSWORD)
                await plain(served, "alice", "not-this-one")
                with file.open("a") as more:
                    more.write("carl:$apr1$abcdefgh$0123456789\ndora:plain-password\n")
                await plain(served, "bob", PASSWORD)
        text = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in records)
        assert "carl" in text
        for secret in (PASSWORD, "not-this-one", ARGON2[-20:], KEYS[-20:], "0123456789", "plain-password"):
            assert secret not in text


class TestScram:
    async def test_it_is_announced_where_all_users_have_keys(self, file: Path) -> None:
        file.write_text(f"alice:{KEYS}\nbob:{ARGON2}\nbob:{KEYS}\n")
        async with asking(backend(file)) as served:
            assert await offered(served) == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
            assert await scram(served, "alice", PASSWORD) == WELCOME
            assert await scram(served, "bob", PASSWORD) == WELCOME
            assert await scram(served, "bob", "wrong") == WRONG
            assert await scram(served, "nobody", PASSWORD) == WRONG

    async def test_it_is_not_where_a_client_that_prefers_it_could_not_log_in(self, file: Path) -> None:
        file.write_text(f"alice:{KEYS}\nbob:{ARGON2}\n")
        async with asking(backend(file)) as served:
            assert await offered(served) == ["PLAIN", "LOGIN"]

    async def test_both_hashes(self, file: Path) -> None:
        file.write_text(f"alice:{KEYS}\nalice:{keys_of(PASSWORD, hash='sha1')}\n")
        async with asking(backend(file)) as served:
            assert await offered(served) == ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN"]
            assert await scram(served, "alice", PASSWORD, "SCRAM-SHA-1") == WELCOME

    @pytest.mark.promises(
        "Users", "A login does not tell which users a file has, neither by its answer nor by the work it takes."
    )
    async def test_an_unknown_name_looks_like_one_of_the_file(self, file: Path) -> None:
        """The same in every process that reads the file, also when others are added to it."""
        file.write_text("".join(f"user{n}:{keys_of(PASSWORD, iterations=5000)}\n" for n in range(3)))
        asked = []
        for _ in range(2):
            async with started(backend(file)) as users:
                asked.append(await Chain([users]).on_scram("nobody", session()))
            with file.open("a") as more:
                more.write(f"late:{keys_of(PASSWORD, iterations=5000)}\n")
        first, second = ([keys] for [keys] in asked)
        assert first == second
        assert first[0].iterations == 5000
        assert len(first[0].salt) == 16

    async def test_its_salt_is_as_long_as_those_of_the_file(self, file: Path) -> None:
        """Other programs make them of another length than ours."""
        file.write_text("".join(f"user{n}:{keys_of(PASSWORD, salt=bytes([n] * 12))}\n" for n in range(3)))
        async with started(backend(file)) as users:
            [alice], [bob] = [await Chain([users]).on_scram(name, session()) for name in ("alice", "bob")]
        assert (len(alice.salt), len(bob.salt), alice.salt == bob.salt) == (12, 12, False)


class TestUnknownUsers:
    @pytest.mark.promises(
        "Users", "A login does not tell which users a file has, neither by its answer nor by the work it takes."
    )
    async def test_they_take_a_check_too(self, file: Path) -> None:
        """Counted in the processor's time: that does not depend on what else the machine does."""
        slow = argon2_of(PASSWORD, memory=32 * 1024, passes=3)
        file.write_text(f"alice:{slow}\n")
        began = time.process_time()
        argon2.PasswordHasher().verify(slow, PASSWORD)
        costs = time.process_time() - began
        async with started(backend(file)) as users:
            began = time.process_time()
            assert await users.authenticate(AuthRequest("PLAIN", "nobody", password=PASSWORD), session()) is None
            assert time.process_time() - began > costs / 2

    @pytest.mark.promises(
        "Users", "A login does not tell which users a file has, neither by its answer nor by the work it takes."
    )
    def test_they_are_like_some_user_always_the_same(self) -> None:
        lines = [f"user{n}:{ARGON2 if n % 2 else BCRYPT}" for n in range(10)]
        accounts = parse_accounts("\n".join(lines).encode())
        chosen = {name: accounts.somebody(name) for name in (f"nobody{n}" for n in range(50))}
        kinds = {account.hash.kind for account in chosen.values() if account and account.hash}
        assert kinds == {"argon2id", "bcrypt"}  # so neither is a sign of being there
        again = parse_accounts("\n".join(lines).encode())
        assert {name: account and account.name for name, account in chosen.items()} == {
            name: account and account.name for name in chosen if (account := again.somebody(name))
        }


class TestFloods:
    """A stranger can try as many passwords as the network carries."""

    @pytest.mark.promises(
        "Users", "However many passwords strangers try, memory stays bounded and other clients log in."
    )
    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell")
    async def test_memory_stays_bounded_and_others_are_served(self, file: Path) -> None:
        size = 64  # MiB for each check
        file.write_text(f"alice:{argon2_of(PASSWORD, memory=size * 1024)}\n")
        async with asking(backend(file, parallel=2), max_clients=100) as served:
            other = await served.hello()
            assert await plain(served, "alice", PASSWORD) == WELCOME  # what the libraries need is loaded
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            before = kilobytes("VmHWM")
            logins = asyncio.gather(*(plain(served, f"user{n}", "guess") for n in range(12)))
            for _ in range(5):
                assert await other.say("NOOP") == "250 OK"
            assert not logins.done()
            assert set(await logins) == {WRONG}
            assert kilobytes("VmHWM") - before < 3 * size * 1024
            assert await plain(served, "alice", PASSWORD) == WELCOME

    @pytest.mark.promises(
        "Users", "However many passwords strangers try, memory stays bounded and other clients log in."
    )
    async def test_who_finds_no_place_is_told_to_come_again(self) -> None:
        release, secret = threading.Event(), Slow()
        secret.release = release
        checking = Checking(1, places=5, places_of_one=3)
        crowd = [asyncio.create_task(checking.fits(secret, "guess", session())) for _ in range(3)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        try:
            with pytest.raises(Reject) as refused:
                await checking.fits(secret, "guess", session())  # type: ignore[arg-type]
            assert (refused.value.code, refused.value.enhanced) == (454, "4.7.0")
            others = [session("2001:db8::1"), session("2001:db8:0:0:ffff::2")]
            more = [asyncio.create_task(checking.fits(secret, "guess", each)) for each in others]  # type: ignore[arg-type]
            await asyncio.sleep(0)
            with pytest.raises(Reject):
                await checking.fits(secret, "guess", session("198.51.100.1"))  # type: ignore[arg-type]
            # Who goes away while it runs leaves no place free before the check has ended: nobody gets more by hanging
            # up. Who goes away before is forgotten.
            crowd[0].cancel()
            await asyncio.sleep(0)
            with pytest.raises(Reject):
                await checking.fits(secret, "guess", session())  # type: ignore[arg-type]
            crowd[2].cancel()
            await asyncio.sleep(0)
            crowd[2] = asyncio.create_task(checking.fits(secret, "guess", session()))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        finally:
            release.set()
        assert await asyncio.gather(*crowd[1:], *more) == [True] * 4
        assert secret.at_once == 1
        assert await checking.fits(secret, "guess", session())  # type: ignore[arg-type]
        checking.close()

    @pytest.mark.promises(
        "Users", "However many passwords strangers try, memory stays bounded and other clients log in."
    )
    async def test_clients_take_turns(self) -> None:
        """A flood from one address makes nobody else wait for more than what is running."""
        secret, order, loop = Slow(), list[str](), asyncio.get_running_loop()
        secret.release = threading.Event()
        checking = Checking(1)

        async def log_in(name: str, address: str) -> None:
            await checking.fits(secret, name, session(address))  # type: ignore[arg-type]
            order.append(name)

        flood = [loop.create_task(log_in(f"guess{n}", "192.0.2.1")) for n in range(30)]
        await asyncio.sleep(0)
        others = [loop.create_task(log_in(f"other{n}", f"198.51.100.{n}")) for n in range(2)]
        await asyncio.sleep(0)
        secret.release.set()
        await asyncio.gather(*flood, *others)
        assert order[:5] == ["guess0", "guess1", "other0", "other1", "guess2"]
        checking.close()

    async def test_who_waits_at_the_end_is_told_so(self) -> None:
        secret = Slow()
        secret.release = threading.Event()
        checking = Checking(1)
        fits = [asyncio.create_task(checking.fits(secret, "x", session(f"192.0.2.{n}"))) for n in (1, 1, 2)]  # type: ignore[arg-type]
        running, *waiting = fits
        await asyncio.sleep(0)
        checking.close()
        for late in (*waiting, checking.fits(secret, "x", session())):  # type: ignore[arg-type]
            with pytest.raises(Reject) as refused:
                await late
            assert refused.value.code == 454
        secret.release.set()
        assert await running


class Slow:
    """A secret that is checked when the test wants it."""

    release: threading.Event
    running = at_once = 0

    def fits(self, password: str) -> bool:
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        self.release.wait(TIMEOUT)
        self.running -= 1
        return True


def kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(field)


class TestChanges:
    async def test_the_file_is_read_again_when_it_changes(self, file: Path) -> None:
        file.write_text(f"alice:{BCRYPT}\n")
        settled(file)
        async with asking(backend(file)) as served:
            assert await plain(served, "bob", PASSWORD) == WRONG
            file.write_text(f"alice:{BCRYPT}\nbob:{BCRYPT}\n")
            assert await plain(served, "bob", PASSWORD) == WELCOME
            file.write_text(f"bob:{bcrypt_of('another')}\n")  # at once again: within one tick of the clock, maybe
            assert await plain(served, "bob", PASSWORD) == WRONG
            assert await plain(served, "bob", "another") == WELCOME
            assert await plain(served, "alice", PASSWORD) == WRONG

    @pytest.mark.parametrize("half", ["", "alice:", f"carl:{BCRYPT}\nali"], ids=["none", "a name", "a line"])
    async def test_a_file_that_is_being_written_is_waited_for(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, half: str
    ) -> None:
        """Most editors empty the file and write it anew: who logs in meanwhile has no wrong password."""
        pauses: list[float] = []

        def write_on(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                file.write_text(f"carl:{BCRYPT}\nalice:{BCRYPT}\n")

        file.write_text(f"alice:{BCRYPT}\n")
        settled(file)
        async with asking(backend(file)) as served:
            clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=write_on)
            monkeypatch.setattr(watched, "time", clock)
            monkeypatch.setattr(watched, "_PATIENCE", TIMEOUT)
            file.write_text(half)
            assert await plain(served, "alice", PASSWORD) == WELCOME
        assert len(pauses) == 2

    async def test_one_without_a_last_line_s_end_is_not_waited_for_without_end(self, file: Path) -> None:
        file.write_text(f"alice:{BCRYPT}\nbob:{BCRYPT}")
        async with asking(backend(file)) as served:
            assert await plain(served, "bob", PASSWORD) == WELCOME

    async def test_it_is_not_read_again_for_nothing(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text(f"alice:{BCRYPT}\n")
        settled(file)
        async with asking(backend(file)) as served:
            opened: list[Path] = []
            monkeypatch.setattr(Path, "open", lambda path, *_: opened.append(path))
            assert await plain(served, "alice", PASSWORD) == WELCOME
            assert await plain(served, "alice", "wrong") == WRONG
            monkeypatch.undo()
        assert opened == []

    async def test_a_wrong_line_locks_out_its_user_alone(self, file: Path) -> None:
        file.write_text(f"alice:{BCRYPT}\nbob:{BCRYPT}\n")
        async with asking(backend(file)) as served:
            file.write_text(f"alice:{BCRYPT}\nbob:{{SHA}}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
            with recorded(logging.ERROR) as records:
                assert await plain(served, "alice", PASSWORD) == WELCOME
                assert await plain(served, "bob", PASSWORD) == WRONG
            assert "line 2: user bob: it has a SHA-1 hash" in records[0].getMessage()

    async def test_a_file_that_cannot_be_read_is_a_failure_for_now(self, file: Path) -> None:
        file.write_text(f"alice:{BCRYPT}\nalice:{KEYS}\n")
        async with asking(backend(file)) as served:
            content = file.read_text()
            file.unlink()
            assert await plain(served, "alice", PASSWORD) == LATER
            client = await served.hello()
            assert await client.say("AUTH SCRAM-SHA-256 biwsbj1hbGljZSxyPWFiYw==") == LATER
            file.write_text(content)
            assert await plain(served, "alice", PASSWORD) == WELCOME

    async def test_a_user_without_keys_is_told_of_where_scram_is_announced(self, file: Path) -> None:
        file.write_text(f"alice:{KEYS}\n")
        async with asking(backend(file)) as served:
            file.write_text(f"alice:{KEYS}\nbob:{BCRYPT}\n")
            with recorded(logging.WARNING) as records:
                assert await plain(served, "bob", PASSWORD) == WELCOME
            assert "has no keys of: bob" in records[0].getMessage()


class TestStart:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("bob:$apr1$x$y", "line 2: user bob: it has an MD5 hash of Apache's"),
            ("bob:$1$x$y", "an MD5 hash"),
            ("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "a SHA-1 hash"),
            ("bob:$6$x$y", "a SHA-512 hash of crypt"),
            ("bob:rqXexS6ZhobKA", "a DES hash of crypt"),
            ("bob:hunter2", "it has no hash that is known here, or a plain password"),
            ("bob:", "it has no hash that is known here"),
            ("bob:$argon2id$v=19$m=64", "its argon2 hash is incomplete or damaged"),
            ("bob:$argon2id$v=19$m=99999999,t=2,p=1$c29tZXNhbHQ$UvdZ4qJLv7w0NdYCzyCKvA", "97656 MiB, 2 passes"),
            ("bob:$argon2id$v=19$m=64,t=2,p=1$!$!", "its argon2 hash is incomplete or damaged"),
            ("bob:$2b$10$tooshort", "its bcrypt hash is incomplete or damaged"),
            ("bob:$2b$03$U1Dp1JTWYYVki79Pu7K/be3j67OIVui5cWj/ydi3CZpri9lkCLKSK", "its bcrypt hash is incomplete"),
            ("bob:$2b$04$abcdefghijklmnopqrstuzaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "its bcrypt hash is incomplete"),
            ("bob:$2b$31$U1Dp1JTWYYVki79Pu7K/be3j67OIVui5cWj/ydi3CZpri9lkCLKSK", "asks for 2**31 rounds"),
            ("bob:SCRAM-SHA-256$4096:x$y:z", "ScramKeys: salt and keys must be base64"),
            ("bob:{keys}", "its 99999999 iterations take too long"),
            ("bob", "line 2: has no colon"),
            (":{argon2}", "cannot be a user's name"),
            ("alice:{bcrypt}", "user alice: has two hashes: remove one line"),
        ],
    )
    async def test_a_line_that_cannot_be_used_is_told_of(self, file: Path, line: str, says: str) -> None:
        for name, secret in {
            "argon2": ARGON2,
            "bcrypt": BCRYPT,
            "keys": KEYS.replace("$4096:", "$99999999:"),
        }.items():
            line = line.replace(f"{{{name}}}", secret)
        file.write_text(f"alice:{ARGON2}\n{line}\n")
        with pytest.raises(ConfigurationError) as refused:
            await backend(file).start()
        assert str(refused.value).startswith(f"{file}, line 2: ")
        assert says in str(refused.value)
        secret = line.partition(":")[2]
        assert len(secret) < 5 or secret not in str(refused.value)

    async def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line(self, file: Path) -> None:
        file.write_bytes(BOM_UTF8 + b"# people\n")
        users = backend(file)
        await users.start()
        await users.close()
        assert lines_of(file) == ["# people"]

    async def test_a_line_that_is_not_utf_8(self, file: Path) -> None:
        file.write_bytes(b"jos\xe9:" + ARGON2.encode() + b"\n")
        with pytest.raises(ConfigurationError, match="line 1: is not UTF-8"):
            await backend(file).start()

    async def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="no such file or directory: make it with 'pillarbox user add"):
            await backend(tmp_path / "none").start()

    async def test_a_file_that_may_not_be_read(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "open", refused)
        with pytest.raises(ConfigurationError, match=r"permission denied: .* may read it: chgrp, chmod g\+r$"):
            await backend(file).start()

    async def test_a_library_that_is_not_there(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text(f"alice:{KEYS}\n")
        monkeypatch.setitem(__import__("sys").modules, "argon2", None)
        await backend(file).start()  # keys need none
        file.write_text(f"alice:{ARGON2}\n")
        with pytest.raises(ConfigurationError, match=r"argon2 .* is missing: pip install 'pillarbox\[users\]'$"):
            await backend(file).start()

    async def test_a_file_that_everybody_can_read(self, file: Path) -> None:
        file.chmod(0o644)
        settled(file)
        with recorded(logging.WARNING) as records:
            await backend(file).start()
        assert [record.getMessage() for record in records] == [f"{file} can be read by everybody: chmod o= {file}"]

    @pytest.mark.parametrize("url", ["htpasswd:", "htpasswd://host/users", "htpasswd:a\0b"])
    def test_a_url_without_a_path(self, url: str) -> None:
        with pytest.raises(ConfigurationError):
            users_from_url(url)

    @pytest.mark.parametrize("url", ["htpasswd:users", "htpasswd:///etc/users", "htpasswd:~/users"])
    def test_urls(self, url: str) -> None:
        assert users_from_url(url).url == url

    @pytest.mark.parametrize("settings", [{"parallel": 0}, {"parallel": 2.5}, {"paralel": 2}])
    def test_settings(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="parallel"):
            users_from_url("htpasswd:users", settings)


def test_a_secret_does_not_show() -> None:
    assert ARGON2 not in repr(Secret("argon2id", ARGON2))
