"""``pillarbox user`` as people start it: processes, terminals, files."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pillarbox import ScramKeys
from pillarbox.cli.user import user
from pillarbox.users.accounts import parse_accounts
from pillarbox.users.editing import change, lines_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks and owners of files")

# As the group's own command: it runs as `pillarbox user`.
COMMAND = [sys.executable, "-c", "from pillarbox.cli.user import user; user(prog_name='pillarbox user')"]
WAIT = 30.0
PASSWORD = "correct horse"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


def run(*arguments: str | Path, password: str | bytes = PASSWORD) -> tuple[int, str, str]:
    """Run a command to its end with a password on standard input: in this process, which saves half a second."""
    octets = password.encode() + b"\n" if isinstance(password, str) else password
    done = CliRunner().invoke(user, [str(argument) for argument in arguments], input=octets)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def kinds(file: Path) -> dict[str, list[str]]:
    accounts = parse_accounts(file.read_bytes())
    assert not accounts.problems
    return {name: [secret.kind for secret in account.secrets()] for name, account in accounts.items()}


class TestAdd:
    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ([], ["argon2id"]),
            (["--hash", "argon2"], ["argon2id"]),
            (["--hash", "bcrypt"], ["bcrypt"]),
            (["--scram"], ["SCRAM-SHA-256"]),
            (["--scram", "--hash", "bcrypt"], ["bcrypt", "SCRAM-SHA-256"]),
            (["--no-scram"], ["argon2id"]),
        ],
    )
    def test_how_a_password_is_kept(self, file: Path, options: list[str], kept: list[str]) -> None:
        assert run("add", *options, "--stdin", file, "alice") == (0, f"{file}: alice has been added\n", "")
        assert kinds(file) == {"alice": kept}
        assert PASSWORD not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert run("verify", "--stdin", file, "alice")[0] == 0
        assert run("verify", "--stdin", file, "alice", password="wrong")[0] == 1

    def test_another_password_takes_the_place_of_the_old(self, file: Path) -> None:
        file.write_text(
            "# people\n\nalice:$apr1$old\nbob:{SHA}older\nalice:SCRAM-SHA-256$old\n\xff odd line\n", "latin-1"
        )
        assert run("add", "--stdin", file, "alice")[:2] == (0, f"{file}: alice has another password\n")
        lines = file.read_text("latin-1").splitlines()
        assert lines[2].startswith("alice:$argon2id$")
        assert lines[:2] + lines[3:] == ["# people", "", "bob:{SHA}older", "\xff odd line"]

    def test_it_tells_where_scram_is_not_offered_any_more(self, file: Path) -> None:
        run("add", "--scram", "--stdin", file, "alice")
        status, _, told = run("add", "--stdin", file, "bob")
        assert (status, told) == (
            0,
            f"{file}: other users have keys for SCRAM: it is offered only where all have them\n",
        )

    def test_names_and_passwords_are_prepared(self, file: Path) -> None:
        typed = "jose\N{COMBINING ACUTE ACCENT}"
        run("add", "--scram", "--stdin", file, typed, password="\N{ROMAN NUMERAL NINE}\N{SOFT HYPHEN}")
        assert list(kinds(file)) == ["jos\N{LATIN SMALL LETTER E WITH ACUTE}"]
        [line] = file.read_text("utf-8").splitlines()
        assert ScramKeys.parse(line.partition(":")[2]).fits("IX")

    def test_a_folder_that_is_missing(self, tmp_path: Path) -> None:
        status, _, told = run("add", "--stdin", tmp_path / "none" / "users", "alice")
        assert (status, told.endswith("no such file or directory (make its folder first)\n")) == (2, True)

    @pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a\tb", "\N{KEY}", "x" * 256])
    def test_what_is_no_name(self, file: Path, name: str) -> None:
        status, _, told = run("add", "--stdin", file, name)
        assert status == 2
        assert "user's name" in told
        assert not file.exists()

    @pytest.mark.parametrize(
        ("password", "options", "says"),
        [
            ("", [], "the password is empty"),
            ("tab\there", [], "control characters"),
            ("x" * 73, ["--hash", "bcrypt"], "bcrypt uses 72 octets"),
            ("\N{KEY}", ["--scram"], "Unicode 3.2"),
            (b"caf\xe9\n", [], "not UTF-8"),
            ("x" * 5000, [], "more than 4096 octets"),
        ],
    )
    def test_what_is_no_password(self, file: Path, password: str | bytes, options: list[str], says: str) -> None:
        status, _, told = run("add", *options, "--stdin", file, "alice", password=password)
        assert status == 2
        assert says in told
        assert not file.exists()

    def test_no_password_on_the_command_line(self, file: Path) -> None:
        assert run("add", file, "alice", PASSWORD)[0] == 2

    def test_without_a_terminal_it_does_not_wait(self, file: Path) -> None:
        status, _, told = run("add", file, "alice")
        assert status == 2
        assert "with --stdin" in told

    def test_a_missing_library_is_told_of(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "argon2", None)
        status, _, told = run("add", "--stdin", file, "alice")
        assert status == 2
        assert "pip install 'pillarbox[users]'" in told

    def test_a_system_without_locks(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pillarbox.users.editing", None)
        status, _, told = run("add", "--scram", "--stdin", file, "alice")
        assert (status, file.exists()) == (2, False)
        assert "locks of files" in told


class TestTerminal:
    def test_the_password_is_asked_for_twice_and_not_shown(self, file: Path) -> None:
        said, status = on_terminal(["add", str(file), "alice"], [PASSWORD, PASSWORD])
        assert status == 0, said
        assert PASSWORD not in said
        assert run("verify", "--stdin", file, "alice")[0] == 0

    def test_two_different_passwords_are_none(self, file: Path) -> None:
        said, _ = on_terminal(["add", str(file), "alice"], [PASSWORD, "other"])
        assert "do not match" in said
        assert not file.exists()

    def test_who_gives_no_password_has_not_given_a_wrong_one(self, file: Path) -> None:
        assert run("add", "--stdin", file, "alice")[0] == 0
        said, status = on_terminal(["verify", str(file), "alice"], ["\x04"])
        assert (status, "no password was given" in said) == (2, True), said


def on_terminal(arguments: list[str], answers: list[str]) -> tuple[str, int]:
    """Run a command on a terminal of its own, answer its questions, and return what it showed."""
    ours, its = pty.openpty()
    # In a session of its own: else it would ask on the terminal of whoever runs the tests.
    process = subprocess.Popen([*COMMAND, *arguments], stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    said, waiting = b"", list(answers)
    try:
        while block := read_terminal(ours):
            said += block
            if b"do not match" in said:
                process.kill()
            elif waiting and said.rstrip(b" ").endswith(b":"):
                os.write(ours, waiting.pop(0).encode() + b"\n")
    finally:
        os.close(ours)
    return said.decode(), process.wait(WAIT)


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the program has ended
        return b""


class TestOthers:
    def test_remove(self, file: Path) -> None:
        file.write_text("alice:$apr1$old\nbob:x\nalice:SCRAM-SHA-256$old\n")
        assert run("remove", file, "alice") == (0, f"{file}: alice has been removed\n", "")
        assert file.read_text() == "bob:x\n"
        assert run("remove", file, "alice") == (1, "", f"{file}: there is no user alice\n")

    def test_verify_says_which_secret_is_of_another_password(self, file: Path) -> None:
        run("add", "--hash", "bcrypt", "--stdin", file, "alice")
        with file.open("a") as more:
            more.write(f"alice:{ScramKeys.from_password('another', iterations=4096)}\n")
        status, _, told = run("verify", "--stdin", file, "alice")
        assert (status, told) == (1, f"{file}: that is not the password of alice (SCRAM-SHA-256)\n")
        assert run("verify", "--stdin", file, "bob")[0] == 1

    def test_list(self, file: Path) -> None:
        run("add", "--scram", "--hash", "argon2", "--stdin", file, "alice")
        assert run("list", file) == (0, "alice  argon2id SCRAM-SHA-256\n", "")
        with file.open("a") as more:
            more.write("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
        status, said, told = run("list", file)
        assert (status, said) == (1, "alice  argon2id SCRAM-SHA-256\n")
        assert told.startswith(f"{file}, line 3: user bob: it has a SHA-1 hash")
        assert "5en6" not in told

    @pytest.mark.parametrize("command", [["remove"], ["list"], ["verify", "--stdin"]])
    def test_a_file_that_is_not_there(self, file: Path, command: list[str]) -> None:
        status, _, told = run(*command, file, *([] if command == ["list"] else ["alice"]))
        assert status == 2
        assert "no such file or directory" in told
        assert not file.exists()

    def test_help_fits_a_screen(self) -> None:
        for arguments in ([], ["add"], ["remove"], ["verify"], ["list"]):
            status, said, _ = run(*arguments, "--help")
            assert status == 0
            assert len(said.splitlines()) <= 24
            assert max(map(len, said.splitlines())) <= 80


class TestTheFile:
    @pytest.mark.promises(
        "Users", "A file of users is changed as a whole, one change at a time, also with kill -9 in the middle."
    )
    def test_two_at_once_lose_nothing(self, file: Path) -> None:
        names = [f"user{n}" for n in range(4)]
        running = [
            subprocess.Popen(
                [*COMMAND, "add", "--scram", "--stdin", file, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONWARNINGS": "error"},
            )
            for name in names
        ]
        for process in running:
            said, told = process.communicate(PASSWORD.encode(), timeout=WAIT)
            assert (process.returncode, said.endswith(b" has been added\n"), told) == (0, True, b"")
        assert sorted(kinds(file)) == names
        assert [path.name for path in file.parent.iterdir()] == ["users"]

    def test_many_threads_lose_nothing(self, file: Path) -> None:
        def add(name: str) -> None:
            for n in range(10):
                change(file, lambda lines, n=n: [*lines, f"{name}{n}:x"], make=True)  # type: ignore[misc]

        threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert len(set(lines_of(file))) == len(lines_of(file)) == 40

    @pytest.mark.promises(
        "Users", "A file of users is changed as a whole, one change at a time, also with kill -9 in the middle."
    )
    def test_a_reader_sees_the_old_file_or_the_new(self, file: Path) -> None:
        big = [f"user{n}:{'x' * 100}" for n in range(2000)]
        change(file, lambda _: big, make=True)
        ended = threading.Event()

        def rewrite() -> None:
            for n in range(30):
                change(file, lambda lines, n=n: [f"turn{n}:x", *lines[-2000:]])  # type: ignore[misc]
            ended.set()

        writer = threading.Thread(target=rewrite)
        writer.start()
        while not ended.is_set():
            assert lines_of(file)[-2000:] == big
        writer.join(WAIT)

    @pytest.mark.promises(
        "Users", "A file of users is changed as a whole, one change at a time, also with kill -9 in the middle."
    )
    def test_killed_in_the_middle_it_has_changed_nothing(self, file: Path, tmp_path: Path) -> None:
        file.write_text("alice:x\n")
        reached = tmp_path / "reached"
        code = f"""
import os, time
from pathlib import Path
from pillarbox.users.editing import change
os.fsync = lambda _: (Path({str(reached)!r}).touch(), time.sleep(60))
change(Path({str(file)!r}), lambda lines: [*lines, "bob:x"])
"""
        process = subprocess.Popen([sys.executable, "-c", code])
        wait_for(reached.exists)
        process.kill()
        process.wait(WAIT)
        assert file.read_text() == "alice:x\n"
        change(file, lambda lines: [*lines, "carl:x"])  # and no lock is left
        assert file.read_text() == "alice:x\ncarl:x\n"

    def test_what_goes_wrong_leaves_nothing_behind(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text("alice:x\n")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            change(file, lambda _: [])
        assert file.read_text() == "alice:x\n"
        assert [path.name for path in file.parent.iterdir()] == ["users"]
        file.unlink()
        with pytest.raises(OSError, match="No space left"):
            change(file, lambda _: ["alice:x"], make=True)
        assert list(file.parent.iterdir()) == []

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
    def test_owner_group_and_mode_stay(self, file: Path) -> None:
        file.write_text("alice:x\n")
        os.chown(file, 65534, 12345)
        file.chmod(0o640)
        assert run("remove", file, "alice")[0] == 0
        status = file.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 12345, 0o640)

    def test_what_everybody_could_read_they_cannot_any_more(self, file: Path) -> None:
        file.write_text("alice:x\n")
        file.chmod(0o644)
        run("remove", file, "alice")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640

    def test_a_symbolic_link_stays_one(self, file: Path, tmp_path: Path) -> None:
        real = tmp_path / "real"
        real.write_text("alice:x\n")
        file.symlink_to(real)
        run("remove", file, "alice")
        assert file.is_symlink()
        assert real.read_text() == ""

    def test_a_lock_that_is_never_given_back(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fcntl

        monkeypatch.setattr("pillarbox.users.editing.PATIENCE", 0.1)
        file.write_text("alice:x\n")
        with file.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(TimeoutError, match="another program is changing it"):
                change(file, lambda _: [])
        assert file.read_text() == "alice:x\n"


def wait_for(condition: Callable[[], bool]) -> None:
    """Look until something is so."""
    passed = threading.Event()
    for _ in range(int(WAIT / 0.02)):
        if condition():
            return
        passed.wait(0.02)
    raise AssertionError("it never happened")


def test_lines_keep_what_is_odd_in_them(file: Path) -> None:
    file.write_bytes(b"a:\xff\x85\xe2\x80\xa8x\r\nb:y")
    change(file, lambda lines: [*lines, "c:z"])
    assert file.read_bytes() == b"a:\xff\x85\xe2\x80\xa8x\r\nb:y\nc:z\n"
    assert re.fullmatch(r"\.?users", file.name)
