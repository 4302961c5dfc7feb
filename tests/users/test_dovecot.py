"""``dovecot:PATH``: a real Dovecot says who may log in; what it never does is done by a server of a few lines."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from interop.peers import program, run
from pillarbox import AuthRequest, ConfigurationError, Reject, ScramKeys, Session
from pillarbox.users import Chain, users_from_url
from pillarbox.users.passwords import make_hash
from support import b64, careless, on_both_loops, pem, recorded, serving
from users.dovecot_auth import DovecotAuth, dovecot_auth
from users.logins import LATER, WELCOME, WRONG, asking, by_smtplib, offered, plain, session, started

PEOPLE = {"people": "alice:correct horse\nj\N{LATIN SMALL LETTER O WITH DIAERESIS}:geheim\nslow:secret\n"}
PASSWD_FILE = "driver = passwd-file\nargs = scheme=PLAIN username_format=%u {folder}/people"
ANY_NAME = "auth_username_chars ="


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotAuth]:
    with dovecot_auth(PASSWD_FILE, ANY_NAME, files=PEOPLE) as found, found.running():
        yield found


def request(name: str, password: str, authzid: str = "") -> AuthRequest:
    return AuthRequest("PLAIN", name, password=password, authcid=name, authzid=authzid)


@on_both_loops
async def test_clients_log_in(dovecot: DovecotAuth) -> None:
    async with asking(users_from_url(dovecot.url)) as served:
        assert await offered(served) == ["PLAIN", "LOGIN"]
        assert await plain(served, "alice", "correct horse") == WELCOME
        assert await plain(served, "alice", "wrong") == WRONG
        assert await plain(served, "nobody", "correct horse") == WRONG
        assert await plain(served, "j\N{LATIN SMALL LETTER O WITH DIAERESIS}", "geheim") == WELCOME
        assert await by_smtplib(served, "alice", "correct horse") == 235
        found = program("gsasl", "gsasl")
        place = (found, "--smtp", "--no-starttls", f"--connect=127.0.0.1:{served.address[1]}", "--no-cb")
        for password, succeeds in (("correct horse", True), ("wrong", False)):
            credential = ("--mechanism", "LOGIN", "--authentication-id", "alice", "--password", password)
            assert ((await asyncio.to_thread(run, [*place, *credential])).status == 0) is succeeds


async def test_the_user_is_who_dovecot_says(dovecot: DovecotAuth) -> None:
    seen: list[Any] = []
    async with asking(users_from_url(dovecot.url), on_mail_from=lambda _, session: seen.append(session.user)) as served:
        client = await served.hello()
        assert await client.say("AUTH PLAIN " + b64("\0ALICE\0correct horse")) == WELCOME
        await client.say("MAIL FROM:<a@example.com>")
    assert seen == ["alice"]


async def test_many_at_once_on_one_connection(dovecot: DovecotAuth) -> None:
    async with started(users_from_url(dovecot.url)) as users:
        before = descriptors()
        passwords = ["correct horse" if n % 3 else "wrong" for n in range(60)]
        answers = await asyncio.gather(*(users.authenticate(request("alice", each), session()) for each in passwords))
        assert answers == ["alice" if each == "correct horse" else None for each in passwords]
        assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_refusal_that_waits_holds_up_nobody() -> None:
    """Dovecot answers a wrong password after some seconds: the connection is everybody's meanwhile."""
    with dovecot_auth(PASSWD_FILE, "auth_failure_delay = 60 secs", files=PEOPLE) as found, found.running():
        async with started(users_from_url(found.url)) as users:
            wrong = asyncio.create_task(users.authenticate(request("alice", "wrong"), session()))
            await asyncio.sleep(0)
            for _ in range(3):
                assert await users.authenticate(request("alice", "correct horse"), session()) == "alice"
            assert not wrong.done()
            wrong.cancel()


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("alice", "x" * 4000),
        ("alice", "x" * 9000),
        ("x" * 8000, "x"),
        ("alice", "correct horse\0"),
        ("alice", "\0alice\0correct horse"),
        ("ali\tce", "x"),
    ],
)
async def test_what_is_too_long_or_forged_harms_nobody_else(dovecot: DovecotAuth, name: str, password: str) -> None:
    async with started(users_from_url(dovecot.url)) as users:
        waiting = asyncio.create_task(users.authenticate(request("alice", "correct horse"), session()))
        assert await users.authenticate(request(name, password), session()) is None
        assert await waiting == "alice"


async def test_it_is_told_of_the_client() -> None:
    """The password is put together of what Dovecot was told."""
    told = "driver = static\nargs = password=%s/%r/%a/%l/%b/%c"
    with dovecot_auth(told) as found, found.running():
        async with started(users_from_url(found.url, {"service": "submission"})) as users:
            client = session("192.0.2.7")
            told_password = "submission/192.0.2.7/587/192.0.2.1/4711/"
            assert await users.authenticate(request("alice", told_password), client) == "alice"
            client.secure = True
            assert await users.authenticate(request("alice", told_password + "secured"), client) == "alice"
            assert await users.authenticate(request("alice", "submission//0//0/"), Session()) == "alice"
        async with asking(users_from_url(found.url), **pem()) as served:
            client_here = await served.hello()
            await client_here.starttls(careless(), None)
            await client_here.ehlo()
            source = client_here.writer.get_extra_info("sockname")
            password = f"smtp/127.0.0.1/{served.address[1]}/127.0.0.1/{source[1]}/secured"
            assert await client_here.say("AUTH PLAIN " + b64(f"\0alice\0{password}")) == WELCOME


async def test_dovecot_decides_who_acts_as_whom() -> None:
    """A master user of Dovecot's may act as another."""
    master = "passdb {{\ndriver = static\nmaster = yes\nargs = password=master-secret\n}}".format()
    with dovecot_auth(PASSWD_FILE, "auth_master_user_separator = *", master, files=PEOPLE) as found, found.running():
        async with started(users_from_url(found.url)) as users:
            assert await users.authenticate(request("root", "master-secret", "alice"), session()) == "alice"
            assert await users.authenticate(request("alice", "correct horse", "slow"), session()) is None


async def test_dovecot_may_be_restarted() -> None:
    with dovecot_auth(PASSWD_FILE, files=PEOPLE) as found:
        users = users_from_url(found.url)
        with found.running():
            await users.start()
            assert await users.authenticate(request("alice", "correct horse"), session()) == "alice"
        async with asking_started(users) as served:
            with recorded(logging.ERROR) as records:
                assert await plain(served, "alice", "correct horse") == LATER
            assert "Dovecot's socket: " in records[0].getMessage()
            with found.running():
                assert await plain(served, "alice", "correct horse") == WELCOME
        await users.close()


@asynccontextmanager
async def asking_started(users: Any) -> AsyncIterator[Any]:
    async with serving(on_auth=Chain([users]).on_auth, allow_insecure_auth=True) as served:
        yield served


async def test_a_failure_of_dovecot_s_own_is_one_for_now() -> None:
    with dovecot_auth("driver = checkpassword\nargs = {folder}/no-such-program") as found, found.running():
        async with asking(users_from_url(found.url)) as served:
            with recorded(logging.ERROR) as records:
                assert await plain(served, "alice", "correct horse") == LATER
        assert "Dovecot has a temporary failure" in records[0].getMessage()


async def test_one_that_hangs_is_not_waited_for(dovecot: DovecotAuth) -> None:
    with dovecot_auth(PASSWD_FILE, files=PEOPLE) as found, found.running():
        async with asking(users_from_url(found.url, {"timeout": 0.5})) as served:
            assert await plain(served, "alice", "correct horse") == WELCOME
            process = await auth_process(found.socket)
            os.kill(process, signal.SIGSTOP)
            try:
                with recorded(logging.ERROR) as records:
                    assert await plain(served, "alice", "correct horse") == LATER
            finally:
                os.kill(process, signal.SIGCONT)
            assert "Dovecot does not answer" in records[0].getMessage()
            assert await plain(served, "alice", "correct horse") == WELCOME


async def auth_process(path: Path) -> int:
    """Return the process that serves a socket of ours: it says it in its handshake."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    while not (line := await reader.readline()).startswith(b"SPID\t"):
        assert line
    writer.close()
    return int(line.split(b"\t")[1])


@pytest.mark.promises("Users", "No password, token or key stands in a log.")
async def test_no_credential_reaches_a_log(dovecot: DovecotAuth) -> None:
    with recorded(logging.DEBUG) as records:
        async with asking(users_from_url(dovecot.url)) as served:
            await plain(served, "alice", "correct horse")
            await plain(served, "alice", "not-this-one")
    text = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in records)
    assert "authenticated as alice" in text
    for secret in ("correct horse", "not-this-one", b64("\0alice\0correct horse"), b64("\0alice\0not-this-one")):
        assert secret not in text


class TestStart:
    async def test_no_socket(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="Dovecot's socket: no such file or directory"):
            await users_from_url(f"dovecot:{tmp_path}/none").start()

    async def test_a_socket_of_something_else(self) -> None:
        async with pretending(b"220 mx.example.com ESMTP\r\n", then_close=True) as url:
            with pytest.raises(ConfigurationError, match=r"the connection was closed|connection reset"):
                await users_from_url(url).start()

    @pytest.mark.parametrize(
        ("greeting", "version"), [(b"VERSION\t2\t0\nMECH\tPLAIN\nDONE\n", "2"), (b"MECH\nVERSION\nDONE\n", r"\?")]
    )
    async def test_a_dovecot_of_another_time(self, greeting: bytes, version: str) -> None:
        async with pretending(greeting) as url:
            with pytest.raises(ConfigurationError, match=f"speaks version {version} of its protocol"):
                await users_from_url(url).start()

    async def test_a_dovecot_without_plain(self) -> None:
        with (
            dovecot_auth(PASSWD_FILE, "auth_mechanisms = cram-md5", files=PEOPLE) as found,
            found.running(),
            pytest.raises(ConfigurationError, match="add plain to its auth_mechanisms"),
        ):
            await users_from_url(found.url).start()

    async def test_one_that_says_nothing(self) -> None:
        async with pretending(b"") as url:
            with pytest.raises(ConfigurationError, match="Dovecot does not answer"):
                await users_from_url(url, {"timeout": 0.1}).start()

    @pytest.mark.parametrize(
        ("url", "settings"),
        [
            ("dovecot:", {}),
            ("dovecot:x", {"service": "a\tb"}),
            ("dovecot:x", {"timeout": 0}),
            ("dovecot:x", {"user": "x"}),
        ],
    )
    def test_what_cannot_be_meant(self, url: str, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            users_from_url(url, settings)


GREETING = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tx\nDONE\n"


@pytest.mark.parametrize(
    ("answer", "user"),
    [
        (b"OK\t1\tuser=al\x01tice\n", "454"),
        (b"OK\t1\n", "454"),
        (b"FAIL\t1\ttemp\n", "454"),
        (b"FAIL\t1\tuser=alice\tcode=temp_fail\n", "454"),
        (b"FAIL\t1\tuser=alice\tcode=user_disabled\n", None),
        (b"FAIL\t99\nNONSENSE\nOK\nOK\t1\tuser=a\x011b\x01nc\n", "454"),
        (b"OK\t1\toriginal_user=x\tuser=alice\n", "alice"),
        (b"CONT\t1\t\nFAIL\t1\n", None),
        (b"x" * 100_000 + b"\n", "454"),
    ],
)
async def test_answers_that_are_rare(answer: bytes, user: str | None) -> None:
    async with pretending(GREETING, answer, answer) as url, started(users_from_url(url)) as users:
        asked = users.authenticate(request("alice", "secret"), session())
        if user == "454":
            with pytest.raises(Reject) as refused:
                await asked
            assert refused.value.code == 454
        else:
            assert await asked == user


async def test_a_connection_lost_with_a_question_on_it_is_asked_anew() -> None:
    answers = (b"", b"OK\t1\tuser=alice\n")
    async with pretending(GREETING, *answers, then_close=True) as url, started(users_from_url(url)) as users:
        assert await users.authenticate(request("alice", "secret"), session()) == "alice"


@asynccontextmanager
async def pretending(greeting: bytes, *answers: bytes, then_close: bool = False) -> AsyncIterator[str]:
    """Listen in place of Dovecot: greet, and say the next answer to each AUTH."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        writer.write(greeting)
        if not answers and then_close:
            writer.close()
        with suppress(asyncio.CancelledError, ConnectionError):
            while line := await reader.readline():
                if line.startswith(b"AUTH\t"):
                    writer.write(left.pop(0))
                    if then_close:
                        break
        writer.close()

    tasks: set[Any] = set()
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        path = f"{folder}/auth"
        server = await asyncio.start_unix_server(serve, path)
        async with server:
            try:
                yield f"dovecot:{path}"
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks)


class TestTheSameFile:
    """Dovecot and ``htpasswd:`` read each other's hashes."""

    @pytest.mark.parametrize("scheme", ["ARGON2ID", "ARGON2I", "BLF-CRYPT"])
    async def test_hashes_that_dovecot_makes(self, tmp_path: Path, scheme: str) -> None:
        found = program("doveadm", "dovecot-core")
        (tmp_path / "none.conf").touch()
        made = run([found, "-c", tmp_path / "none.conf", "pw", "-s", scheme, "-p", "correct horse"]).output.strip()
        assert made.startswith(f"{{{scheme}}}$")
        (tmp_path / "users").write_text(f"alice:{made.partition('}')[2]}\n")
        async with started(users_from_url(f"htpasswd:{tmp_path}/users")) as users:
            assert await users.authenticate(request("alice", "correct horse"), session()) == "alice"
            assert await users.authenticate(request("alice", "wrong"), session()) is None

    async def test_a_file_of_pillarbox_user(self) -> None:
        """Of a user with a hash and keys Dovecot takes the first line, which is the hash."""
        lines = [make_hash("correct horse", "argon2"), str(ScramKeys.from_password("other", iterations=4096))]
        file = {"people": "".join(f"alice:{line}\n" for line in lines)}
        with dovecot_auth(PASSWD_FILE.replace("PLAIN", "ARGON2ID"), files=file) as found, found.running():
            async with started(users_from_url(found.url)) as users:
                assert await users.authenticate(request("alice", "correct horse"), session()) == "alice"
                assert await users.authenticate(request("alice", "other"), session()) is None
