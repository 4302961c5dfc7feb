"""Webhooks: their settings, and that their page says what is so."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from endpoint import OTHER_SECRET, SECRET, posted
from pillarbox import ConfigurationError
from pillarbox.deliver import Target, target_from_url
from pillarbox.deliver.webhook import WebhookSettings
from pillarbox.deliver.webhook.answer import Answer, is_passing, refusal_for
from pillarbox.deliver.webhook.event import Event


class TestConfiguration:
    @pytest.mark.parametrize(
        ("url", "settings", "message"),
        [
            ("http:", {}, "names no host"),
            ("https:///in", {}, "names no host"),
            ("http://x:port/", {}, "the URL of the webhook is none"),
            ("http://[::1/", {}, "the URL of the webhook is none"),
            ("http://ho st/", {}, "names no host"),
            ("http://x:0/", {}, "names no host"),
            (f"http://{'a' * 64}.example/", {}, "the host is no name"),
            ("http://a..b/", {}, "the host is no name"),
            ("http://x/a b", {}, "a space in it is written %20"),
            ("http://x/", {"proxy": "xyzzy"}, "must be the URL of an HTTP proxy"),
            ("http://x/", {"proxy": "http://u:xyzzy@p:port"}, "must be the URL of an HTTP proxy"),
            ("https://x/#y", {}, "a fragment"),
            ("http://x/", {"ca": "ca.pem"}, "ca and cert are for https"),
            ("https://x/", {"socket": "app.sock"}, "to a Unix socket there is no TLS"),
            ("https://u:xyzzy@x/", {"headers": {"authorization": "y"}}, "a user in the URL and Authorization"),
            ("https://x/", {"format": "xml"}, "format: .*'multipart', 'json' or 'reference'"),
            ("https://x/", {"format": "reference"}, "needs a folder"),
            ("https://x/", {"secret": "xyzzy"}, "a secret is written whsec_"),
            ("https://x/", {"secret": "whsec_xyzzy"}, "a secret is written whsec_"),
            ("https://x/", {"secret": SECRET, "secret_file": "x"}, "exclude each other"),
            ("https://x/", {"key": "x"}, "key needs cert"),
            ("http://x/", {"socket": "x", "proxy": "http://p"}, "exclude each other"),
            ("https://x/", {"headers": {"a b": "c"}}, "is no name of a header field"),
            ("https://x/", {"headers": {"Content-Type": "c"}}, "is set by the program itself"),
            ("https://x/", {"headers": {"accept-encoding": "gzip"}}, "is set by the program itself"),
            ("https://x/", {"headers": {"Webhook-Id": "c"}}, "is set by the program itself"),
            ("https://x/", {"headers": {"a": "xyzzy\r\nb: c"}}, "the value of a has characters"),
            ("https://x/", {"attempts": 0}, "attempts: "),
            ("https://x/", {"request_timeout": 0}, "request_timeout: "),
            ("https://x/", {"give_up_after": 601}, "give_up_after: "),
            ("https://x/", {"formt": "json"}, "unknown key 'formt': did you mean 'format'"),
        ],
    )
    def test_wrong(self, url: str, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message) as error:
            target_from_url(url, settings)
        assert "xyzzy" not in str(error.value)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"secret_file": "none"}, "secret_file none: no such file or directory"),
            ({"secret_file": "empty"}, "secret_file empty: there is no secret in it"),
            ({"secret_file": "bad"}, "secret_file bad: a secret is written"),
            ({"ca": "none"}, "ca none: no such file or directory"),
            ({"ca": "bad"}, "ca bad: "),
            ({"cert": "none"}, "cert none: no such file or directory"),
            ({"cert": "bad"}, "cert bad: "),
            ({"folder": "none"}, "folder none: there is no such folder"),
            ({"folder": "bad"}, "folder bad: there is no such folder"),
        ],
    )
    async def test_wrong_at_the_start(
        self, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").write_text("# none\n")
        (tmp_path / "bad").write_text("xyzzy\n")
        target = target_from_url("https://hooks.example.com/in", settings)
        with pytest.raises(ConfigurationError, match=message) as error:
            await target.start()
        await target.close()
        assert "xyzzy" not in str(error.value)

    def test_without_the_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pillarbox.deliver.webhook.settings.find_spec", lambda name: None)
        with pytest.raises(ConfigurationError, match=r"pip install 'pillarbox\[http\]'"):
            target_from_url("https://hooks.example.com/in")

    def test_what_is_shown(self) -> None:
        assert target_from_url("https://u:p@[::1]:8443/in?token=1").url == "https://[::1]:8443/in?…"

    def test_what_a_reload_keeps(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text(SECRET)
        settings = {"secret_file": str(file)}

        def made(url: str = "https://u:p@hooks.example.com/in?token=1", **more: Any) -> Target:
            return target_from_url(url, {**settings, **more})

        running = made()
        assert made().same_as(running)
        assert not made("https://u:p@hooks.example.com/in?token=2").same_as(running)
        assert not made("https://u:q@hooks.example.com/in?token=1").same_as(running)
        assert not made(headers={"X": "y"}).same_as(running)
        assert not target_from_url("discard:").same_as(running)
        file.write_text(f"{OTHER_SECRET}\n{SECRET}")
        assert not made().same_as(running)

    async def test_close_without_a_start(self) -> None:
        await target_from_url("https://hooks.example.com/in").close()


class TestPage:
    """docs/target-webhook.md says what is so."""

    PAGE = (Path(__file__).parents[2] / "docs" / "target-webhook.md").read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self.PAGE, re.MULTILINE | re.DOTALL)

    def test_the_event(self) -> None:
        shown = self.blocks("json")[0]
        event = Event.model_validate_json(shown, strict=True)
        assert json.loads(event.model_dump_json(by_alias=True)) == json.loads(shown)

    def test_the_answer(self) -> None:
        answer = Answer.from_body(self.blocks("json")[1].encode(), "application/json")
        assert answer.reply is not None
        assert [reply.code for reply in answer.recipients.values()] == [550, 452]

    def test_the_settings(self) -> None:
        table = self.PAGE.partition("| key | default | |")[2]
        assert {
            name
            for row in table.splitlines()
            if row.startswith("| `")
            for name in re.findall("`(.*?)`", row.split("|")[1])
        } == set(WebhookSettings.model_fields)
        [configured] = tomllib.loads(self.blocks("toml")[0])["deliver"]
        assert target_from_url(configured["url"], {"secret_file": configured["secret_file"]})

    def test_the_table_of_replies(self) -> None:
        rows = {
            row.split("|")[1].strip(): row.split("|")[2:4] for row in self.PAGE.splitlines() if row.startswith("| ")
        }
        listed = {
            status: cells
            for codes, cells in rows.items()
            if re.fullmatch(r"(\d{3}( to \d{3})?(, )?)+", codes)
            for span in codes.split(", ")
            for status in range(int(span[:3]), int(span[-3:]) + 1)
        }
        others = rows["3xx, 401, 403, 404, 405 and all others"]
        for status in range(300, 600):
            reply, again = (cell.strip() for cell in listed.get(status, others))
            refusal = refusal_for(status)
            assert (reply, again) == (f"{refusal.code} {refusal.enhanced}", "yes" if is_passing(status) else "no")

    async def test_the_python_of_the_page(self) -> None:
        names: dict[str, Any] = {}
        for block in self.blocks("python"):
            exec(block, names)
        octets = bytes(range(256)) * 3
        content = b"Content-Type: application/x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(
            octets
        )
        got = await posted(content, secret=[OTHER_SECRET, SECRET])
        event, raw = got.parts()["event"][1], got.parts()["message"][1]
        data = names["verified"](got.headers, event, raw, SECRET)
        assert names["attachment"](raw, data["attachments"][0]) == octets
        for changed in ((event + b" ", raw), (event, raw + b" ")):
            with pytest.raises(PermissionError):
                names["verified"](got.headers, *changed, SECRET)
