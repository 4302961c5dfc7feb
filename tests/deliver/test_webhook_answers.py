"""Webhooks: what the endpoint's answer does."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from endpoint import HELLO, NOT_NOW, answering, endpoint, refused, webhook
from messages import message, session_for
from pillarbox import Reject
from pillarbox.deliver.webhook.answer import Answer, NotUnderstood, answers

WORDS = ["reply", "recipients", "code", "text", "enhanced", "b@example.com"]
pytestmark = pytest.mark.usefixtures("in_no_time")


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "reply"),
        [
            (400, "554 5.6.0 Error: the message was refused"),
            (406, "554 5.6.0 Error: the message was refused"),
            (410, "550 5.2.1 Error: mailbox disabled, not accepting messages"),
            (413, "552 5.3.4 Error: message too large"),
            (415, "554 5.6.1 Error: the message has media that are not supported here"),
            (422, "554 5.6.0 Error: the message was refused"),
        ],
    )
    async def test_the_message_is_refused(self, status: int, reply: str, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url) as target:
            assert await refused(target) == reply
        assert there.begun == 1
        assert not caplog.records

    @pytest.mark.parametrize(
        ("status", "logged"),
        [
            (401, "status 401 (look at headers and secret)"),
            (403, "status 403 (look at headers and secret)"),
            (404, "status 404 (look at the URL)"),
            (405, "status 405 (look at the URL: it takes no POST)"),
            (418, "status 418"),
            (501, "status 501"),
        ],
    )
    async def test_something_is_wrong_here(self, status: int, logged: str, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert there.begun == 1
        assert caplog.messages == [f"cannot hand a message to {there.url}: {logged}"]

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 522])
    async def test_tried_again_and_given_up(self, status: int, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url, attempts=3) as target:
            full = "452 4.3.1 Error: insufficient system storage, try again later"
            assert await refused(target) == (full if status == 507 else NOT_NOW)
        assert there.begun == 3
        [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert error.getMessage() == f"cannot hand a message to {there.url}: status {status}"

    @pytest.mark.parametrize("status", [200, 201, 202, 204])
    async def test_accepted(self, status: int) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url + "?token=x") as target:
            [place] = await target.deliver(message(HELLO))
        assert place == f"{there.url}?… ({there.got[0].headers['webhook-id']})"
        assert there.got[0].path == "/in?token=x"

    async def test_a_reply_of_its_own(self) -> None:
        own = {"reply": {"code": 550, "text": "No such\r\nuser", "enhanced": "5.1.1"}}
        async with endpoint(answering(200, own), answering(503, own)) as there, webhook(there.url) as target:
            for _ in range(2):
                [answer] = await target.deliver(message(HELLO))
                assert isinstance(answer, Reject)
                assert (answer.code, answer.text, answer.enhanced) == (550, "No such\r\nuser", "5.1.1")
        assert there.begun == 2  # a reply is the endpoint's decision: it is not asked again

    async def test_a_reply_without_text(self) -> None:
        async with (
            endpoint(answering(200, {"reply": {"code": 452}}), answering(200, {"reply": {"code": 550}})) as there,
            webhook(there.url) as target,
        ):
            answers = [str((await target.deliver(message(HELLO)))[0]) for _ in range(2)]
        assert answers == [
            "452 Error: the message cannot be stored now, try again later",
            "550 Error: the message was refused",
        ]

    async def test_a_reply_for_each_recipient(self) -> None:
        own = {"recipients": {"c@EXAMPLE.com": {"code": 550, "text": "No"}, "d@example.com": {"code": 250}}}
        session = session_for("b@example.com", "C@example.com", "d@example.com")
        async with endpoint(answering(200, own)) as there, webhook(there.url) as target:
            answers = await target.deliver(message(HELLO, session=session))
        assert [str(answer).partition(" ")[0] for answer in answers] == [there.url, "550", there.url]

    async def test_all_refused_but_one(self) -> None:
        own = {"reply": {"code": 450, "text": "Later"}, "recipients": {"b@example.com": {"code": 250}}}
        session = session_for("b@example.com", "c@example.com")
        async with endpoint(answering(200, own)) as there, webhook(there.url) as target:
            answers = await target.deliver(message(HELLO, session=session))
        assert [str(answer).partition(" ")[0] for answer in answers] == [there.url, "450"]

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, {"reply": "ok"}),
            (200, {"reply": {"code": "550"}}),
            (200, {"reply": {"code": 354}}),
            (200, {"reply": {"code": 421}}),
            (200, {"reply": {"code": 99}}),
            (200, {"reply": {"code": 550, "text": 5}}),
            (200, {"reply": {"code": 550, "text": "x" * 1001}}),
            (200, {"reply": {"code": 550, "enhanced": "4.1.1"}}),
            (200, {"reply": {"code": 550, "enhanced": "5.1.1\r\n250 ok"}}),
            (200, {"recipients": ["b@example.com"]}),
            (200, {"recipients": {"other@example.com": {"code": 550}}}),
            (422, {"reply": {"code": 250}}),
        ],
    )
    async def test_what_cannot_be_understood_is_never_taken_for_yes(
        self, status: int, body: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with endpoint(answering(status, body)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert "its answer cannot be understood: " in caplog.text

    async def test_a_refusal_that_is_compressed_is_no_yes(self, caplog: pytest.LogCaptureFixture) -> None:
        async def compressed(_: web.Request) -> web.StreamResponse:
            body = gzip.compress(b'{"reply": {"code": 550}}')
            return web.Response(body=body, content_type="application/json", headers={"Content-Encoding": "gzip"})

        async with endpoint(compressed) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert "its answer is compressed" in caplog.text

    @pytest.mark.parametrize(
        "answer",
        [
            answering(200, {"ok": True}),
            answering(200, ["x"]),
            answering(200, {"x": "y" * 100_000}),
            answering(200, {"reply": {"code": 250, "text": "thanks"}}),
        ],
    )
    async def test_what_says_nothing_of_it_counts_by_its_status(self, answer: Any) -> None:
        async with endpoint(answer) as there, webhook(there.url) as target:
            assert isinstance((await target.deliver(message(HELLO)))[0], str)

    @given(
        st.integers(200, 599),
        st.recursive(
            st.none() | st.integers() | st.text() | st.sampled_from(["b@example.com", "4.1.1", 250, 450, 550]),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner),
        ),
    )
    @hypothesis_settings(max_examples=150, deadline=None)
    def test_nothing_that_is_answered_raises(self, status: int, body: Any) -> None:
        try:
            answer = Answer.from_body(json.dumps(body).encode(), "application/json")
            [outcome] = answers(status, answer, session_for().envelope.rcpt_to, "place")
        except NotUnderstood:
            return
        assert isinstance(outcome, str) <= (200 <= status <= 299)

    @pytest.mark.parametrize("body", [b"", b"{", b"[" * 60_000, b"\xff", b"{}" * 40_000, b"null"])
    def test_what_is_no_object_says_nothing(self, body: bytes) -> None:
        assert Answer.from_body(body, "application/json").is_silent

    async def test_a_redirection_to_nowhere(self, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(302, Location="http://[")) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert "it redirects to what is no URL" in caplog.text

    async def test_no_redirection_is_followed(self, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint() as elsewhere:
            moved = answering(307, Location=elsewhere.url + "?secret=1")
            async with endpoint(moved) as there, webhook(there.url) as target:
                assert await refused(target) == NOT_NOW
        assert not elsewhere.got
        assert caplog.messages == [
            f"cannot hand a message to {there.url}: status 307 (it redirects to {elsewhere.url}: write that)"
        ]
