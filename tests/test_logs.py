"""The log's records are the standard library's in all that a formatter may ask for, though they are made otherwise."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pillarbox.errors import Reject
from pillarbox.logs import ROOT, EventLog
from pillarbox.session import Session
from support import recorded

STANDARD = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s [%(cid)s]")


@pytest.fixture
def fresh_console() -> Iterator[None]:
    """Let ``logger=True`` make its logger anew, on this test's standard error."""
    logger = ROOT.getChild("console")
    before, logger.handlers = logger.handlers, []
    yield
    logger.handlers = before


def failure() -> Exception:
    try:
        raise Reject(550, "no such user")
    except Reject as error:
        return error


def test_a_record_has_every_attribute_of_a_standard_one() -> None:
    with recorded() as records:
        EventLog(None, "mx").event(logging.INFO, "message", None, "%d bytes", 5)
        ROOT.info("%d bytes", 5, extra={"component": "mx", "tnx": "message", "cid": "", "user": None, "address": ""})
    ours, standard = records
    assert vars(ours).keys() == vars(standard).keys()
    same = {"name", "msg", "args", "levelname", "levelno", "exc_info", "thread", "threadName", "process"}
    assert {key: getattr(ours, key) for key in same} == {key: getattr(standard, key) for key in same}
    assert [type(vars(ours)[key]) for key in vars(ours)] == [type(vars(standard)[key]) for key in vars(ours)]
    assert ours.threadName == threading.current_thread().name
    assert 0 <= standard.created - ours.created < 60
    assert abs((standard.created - ours.created) * 1000 - (standard.relativeCreated - ours.relativeCreated)) < 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="records name the task from 3.12 on")
async def test_a_record_names_the_task() -> None:
    task: Any = asyncio.current_task()
    task.set_name("conversation")
    with recorded() as records:
        EventLog(None, "mx").event(logging.INFO, "message", None, "one")
        await asyncio.create_task(later(), name="another")
    assert [getattr(record, "taskName", "") for record in records] == ["conversation", "another"]


async def later() -> None:
    EventLog(None, "mx").event(logging.INFO, "message", None, "two")


def test_a_record_factory_of_the_application_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Marked(logging.LogRecord):
        pass

    standard = logging.getLogRecordFactory()
    log = EventLog(None, "mx")
    try:
        logging.setLogRecordFactory(Marked)
        with recorded() as records:
            log.event(logging.INFO, "message", None, "one")
    finally:
        logging.setLogRecordFactory(standard)
    assert type(records[0]) is Marked


@pytest.mark.usefixtures("fresh_console")
def test_the_console_writes_a_line_with_time_level_and_session(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(remote_address="192.0.2.1")
    with recorded() as records:
        log = EventLog(True, "mx")
        log.event(logging.INFO, "message", session, "%d bytes from <%s>", 5, "a@example.org")
        log.event(logging.ERROR, "error", session, "on_data failed", error=failure())
    written = capsys.readouterr().err
    assert written == "".join(f"{STANDARD.format(record)}\n" for record in records)
    assert written.splitlines()[0].endswith(f" INFO    5 bytes from <a@example.org> [{session.id}]")
    assert "Traceback (most recent call last)" in written
