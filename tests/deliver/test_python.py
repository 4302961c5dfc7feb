"""One's own targets: found, made with their settings, and what is wrong with them is said before the first message."""

from __future__ import annotations

import smtplib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from deliver.contract import started
from messages import message, session_for
from pillarbox import ConfigurationError, Reject
from pillarbox.deliver import Target, target_from_url
from program import MODULE, WAIT, Start
from support import offering

Write = Callable[..., None]
PREAMBLE = "from pillarbox import ConfigurationError, Reject\nfrom pillarbox.deliver import Settings, Target\n"
BOX = """
    class BoxSettings(Settings):
        label: str = "plain"

    class Box(Target):
        Settings = BoxSettings
        relays = True
        closed = False

        async def start(self):
            if self.settings.label == "no":
                raise ConfigurationError(f"{self.url}: it says no")

        async def verify(self, recipient, session):
            if recipient.address.startswith("nobody"):
                raise Reject(550, "no such user", enhanced="5.1.1")

        async def deliver(self, message):
            size = sum([len(block) async for block in message])
            return [f"{self.settings.label} {size} {recipient}" for recipient in message.recipients]

        async def close(self):
            self.closed = True

    class BareBox(Target):
        pass

    class Elsewhere:
        box = Box("elsewhere:", BoxSettings(label="made before"))
    """


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the working directory, from where it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def written(text: str, name: str = "own_targets") -> None:
        (tmp_path / f"{name}.py").write_text(PREAMBLE + dedent(text))

    yield written
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


async def answer(url: str, **settings: object) -> object:
    async with started(url, **settings) as target:
        return await target.deliver(message(b"12", b"345", session=session_for("b@example.com", "c@example.com")))


class TestObjects:
    async def test_a_class_with_settings(self, write: Write) -> None:
        write(BOX)
        assert await answer("python:own_targets:Box", label="x") == ["x 5 b@example.com", "x 5 c@example.com"]
        assert await answer("python:own_targets:Box") == ["plain 5 b@example.com", "plain 5 c@example.com"]

    async def test_a_class_is_the_target_itself(self, write: Write) -> None:
        write(BOX)
        target = target_from_url("python:own_targets:Box")
        assert (type(target).__name__, target.relays, target.final) == ("Box", True, True)
        assert target.url == "python:own_targets:Box"

    async def test_an_object_of_one(self, write: Write) -> None:
        write(BOX)
        async with started("python:own_targets:Elsewhere.box") as target:
            assert await target.deliver(message(b"1")) == ["made before 1 b@example.com"]
            assert target.relays
            with pytest.raises(Reject):
                await target.verify(session_for("nobody@example.com").envelope.rcpt_to[0], session_for())
        own = sys.modules["own_targets"].Elsewhere.box
        assert own.closed

    @pytest.mark.parametrize(
        ("returned", "expected"),
        [("None", "python:own_targets:keep"), ("'there'", "there"), ("['a', 'b']", ["a", "b"])],
    )
    async def test_a_function(self, write: Write, returned: str, expected: object) -> None:
        write(f"""
            async def keep(message):
                assert [block async for block in message] == [b"12", b"345"]
                return {returned}
            """)
        assert await answer("python:own_targets:keep") == expected

    async def test_what_can_be_called_like_one(self, write: Write) -> None:
        write("""
            from functools import partial

            class Keeper:
                async def __call__(self, message):
                    return "kept"

                async def keep(self, how, message):
                    return how

            keeper = Keeper()
            method = partial(keeper.keep, "partly")
            """)
        assert await answer("python:own_targets:keeper") == "kept"
        assert await answer("python:own_targets:method") == "partly"

    async def test_in_a_package(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "own_package").mkdir()
        (tmp_path / "own_package" / "targets.py").write_text("async def keep(message): return 'here'")
        assert await answer("python:own_package.targets:keep") == "here"


class TestMistakes:
    @pytest.mark.parametrize(
        "url", ["python:", "python:own_targets", "python::keep", "python:a b:c", "python:own_targets:", "python:a/b:c"]
    )
    def test_the_form(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match=r"write python:MODULE:OBJECT, for example"):
            target_from_url(url)

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("plain", "is a function without async, not a subclass of pillarbox.deliver.Target, an object of one, or"),
            ("generator", r"is an async generator \(a function with yield\), not"),
            ("Thing", "is the class Thing, not"),
            ("thing", "is an object of Thing, not"),
            ("number", "is an object of int, not"),
            ("Empty", "is the class Empty without a method deliver, not"),
            ("empty", "is the class Empty without a method deliver, not"),
            ("nothing", r"own_targets \(.*own_targets\.py\) has no 'nothing'"),
            ("Thing.deeper", r"own_targets \(.*\) has no 'Thing\.deeper'"),
            ("Broken", r"Broken\(url, settings\) failed: ZeroDivisionError: "),
            ("Deaf", r"Deaf\(url, settings\) failed: AttributeError: .*url"),
            ("Plain", r"Plain\.Settings is no subclass of pillarbox\.deliver\.Settings"),
        ],
    )
    def test_what_it_is_instead(self, write: Write, name: str, what: str) -> None:
        write("""
            def plain(message): ...

            async def generator(message):
                yield

            class Thing:
                async def __call__(self, message): ...

            class Empty(Target): ...

            class Works(Target):
                async def deliver(self, message): ...

            class Broken(Works):
                def __init__(self, url, settings):
                    1 / 0

            class Deaf(Works):
                def __init__(self, url, settings): ...

            class Plain(Works):
                Settings = dict

            thing, number, empty = object.__new__(type("Thing", (), {})), 5, Empty("", None)
            """)
        with pytest.raises(ConfigurationError, match=what):
            target_from_url(f"python:own_targets:{name}")

    @pytest.mark.parametrize("module", ["own_missing", "own_targets.missing"])
    def test_there_is_no_such_module(self, write: Write, tmp_path: Path, module: str) -> None:
        write("x = 1")
        with pytest.raises(ConfigurationError) as found:
            target_from_url(f"python:{module}:keep")
        assert f"there is no module {module!r}" in str(found.value)
        assert f"start pillarbox in its folder (this is {tmp_path})" in str(found.value)

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("import own_missing_too", r"No module named 'own_missing_too' \(.*own_targets\.py, line \d+\)"),
            ("1 / 0", r"ZeroDivisionError: division by zero \(.*own_targets\.py, line \d+\)"),
            ("async def", r"invalid syntax \(.*own_targets\.py, line \d+\)"),
        ],
    )
    def test_a_module_that_fails(self, write: Write, text: str, what: str) -> None:
        write(text)
        with pytest.raises(ConfigurationError, match=what):
            target_from_url("python:own_targets:keep")

    def test_no_file_takes_the_place_of_a_module_that_is_installed(self, write: Write) -> None:
        write("async def keep(message): ...", "smtplib")
        with pytest.raises(ConfigurationError, match=r"smtplib \(.*smtplib\.py\) has no 'keep'"):
            target_from_url("python:smtplib:keep")
        assert hasattr(smtplib, "SMTP")

    def test_settings_that_it_does_not_have(self, write: Write) -> None:
        write(BOX + "\n    async def keep(message): ...\n")
        with pytest.raises(ConfigurationError, match=r"unknown key 'lable': did you mean 'label'\?"):
            target_from_url("python:own_targets:Box", {"lable": "x"})
        with pytest.raises(ConfigurationError, match="unknown key 'label'"):
            target_from_url("python:own_targets:keep", {"label": "x"})
        with pytest.raises(ConfigurationError, match="label: "):
            target_from_url("python:own_targets:Box", {"label": 5})


def test_the_program_takes_a_target_of_another_distribution(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    write(BOX, "own_shelf")
    offering(tmp_path, "shelf", "[pillarbox.targets]\nshelf = own_shelf:Box\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "p.toml").write_text('[[deliver]]\nurl = "shelf:x"\nlabel = "third"\n')
    program = start("--listen", "127.0.0.1:0", "--config", "p.toml")
    send(program.port())
    program.line(r"in third \d+ b@example\.com$")


SCRIPT = [sys.executable, "-P", "-c", "import sys; sys.argv[0] = 'pillarbox'; from pillarbox.cli import main; main()"]


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["module", "script"])
def test_the_program_finds_a_module_in_its_working_directory(
    write: Write, start: Start, command: list[str], tmp_path: Path
) -> None:
    write(BOX)
    (tmp_path / "p.toml").write_text('[[deliver]]\nurl = "python:own_targets:Box"\nlabel = "mine"\n')
    program = start("--listen", "127.0.0.1:0", "--config", "p.toml", command=command)
    port = program.port()
    send(port)
    program.line(r"in mine \d+ b@example\.com$")
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        client.ehlo()
        client.mail("a@example.org")
        assert client.rcpt("nobody@example.com") == (550, b"no such user")


def test_the_program_says_what_is_wrong_and_where(write: Write, start: Start, tmp_path: Path) -> None:
    write(BOX)
    (tmp_path / "p.toml").write_text('[[deliver]]\nurl = "python:own_targets:Box"\nlabel = "no"\n')
    program = start("--config", "p.toml")
    assert program.wait() == 2
    assert "Error: p.toml, [[deliver]] 1: python:own_targets:Box: it says no" in program.lines


def send(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        client.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nHello.\r\n")


async def test_the_base_class_is_no_target() -> None:
    with pytest.raises(NotImplementedError):
        await Target("x:", None).deliver(message())
