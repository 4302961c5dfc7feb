"""The pages that are made from something say what that says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pillarbox.options import declarations

DOCS = Path(__file__).parent.parent / "docs"


def maker(name: str = "make_options") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks up its module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    assert page == maker().page(), 'docs/options.md is not what the declarations say: run "make docs"'


def test_every_option_has_its_row_with_every_cell() -> None:
    rows = [line.replace("\\|", "") for line in maker().page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(declarations())
    assert {row.count("|") for row in rows} == {7}


def test_units_and_defaults_are_shown() -> None:
    page = maker().page()
    assert "| `socket_timeout` | float | `60.0` | s | `socketTimeout` |" in page
    assert "| `size` | int | none | bytes | `size` |" in page
    assert '| `auth_methods` | list of str | `["LOGIN", "PLAIN"]` |' in page
    assert "| `name` | str | the host's name |" in page


def test_the_page_of_replies_is_that_of_the_table() -> None:
    page = (DOCS / "replies.md").read_text(encoding="utf-8")
    assert page == maker("make_replies").page(), 'docs/replies.md is not what smtp/reply.py says: run "make docs"'


def test_the_page_of_metrics_is_that_of_the_table() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert page == maker("make_metrics").page(), 'docs/metrics.md is not what program/page.py says: run "make docs"'


def test_the_page_of_speed_is_that_of_the_last_run() -> None:
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert page == maker("make_speed").page(), 'docs/speed.md is not what was measured: run "make docs"'


def test_the_page_of_the_soak_is_that_of_its_last_runs() -> None:
    page = (DOCS / "soak.md").read_text(encoding="utf-8")
    assert page == maker("make_soak").page(), 'docs/soak.md is not what was found: run "make docs"'
    assert "**failed**" not in page


def test_the_page_of_differences_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_differences = maker("make_differences")
    assert make_differences.main(["--check"]) is None
    old = tmp_path / "differences.md"
    old.write_text("what it said before", encoding="utf-8")
    monkeypatch.setattr(make_differences, "PAGE", old)
    assert 'run "make docs"' in make_differences.main(["--check"])
    assert make_differences.main([]) is make_differences.main(["--check"]) is None


def test_every_promise_has_a_test_and_every_mark_names_a_promise() -> None:
    assert maker("make_security").problems() == []


def test_the_page_of_security_is_that_of_the_marks() -> None:
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    assert page == maker("make_security").page(), 'docs/security.md is not what the tests\' marks say: run "make docs"'


def test_the_page_and_the_schema_of_the_webhook_are_those_of_its_models() -> None:
    make_webhook = maker("make_webhook")
    for name, made in (("webhook-event.md", make_webhook.page()), ("webhook.schema.json", make_webhook.schema())):
        assert (DOCS / name).read_text(encoding="utf-8") == made, (
            f'docs/{name} is not what the models say: run "make docs"'
        )


# --- The page of peers: made from a run, so that only what the tests name can be held against it


def test_every_peer_of_a_test_is_on_the_page() -> None:
    make_peers = maker("make_peers")
    page = (DOCS / "peers.md").read_text(encoding="utf-8")
    names = make_peers.named()
    assert {"curl", "smtp-source", "Go net/smtp"} <= names  # a mark, one made with partial, one that makes rows
    assert [name for name in sorted(names) if f"| {name} |" not in page] == [], 'run "make peers"'


REPORT = """<testsuites><testsuite name="pytest" timestamp="2026-03-07T09:05:03+00:00">
<testcase classname="tests.interop.test_a" name="test_one[x]"><properties>
  <property name="proves Postfix smtp" value="STARTTLS"/><property name="proves Postfix smtp" value="8BITMIME"/>
  <property name="version Postfix smtp" value="3.10.1"/><property name="system" value="Debian, Python 3.13"/>
</properties></testcase>
<testcase classname="tests.interop.test_a" name="test_one[y]"><properties>
  <property name="proves Postfix smtp" value="8BITMIME"/>
</properties><failure message="assert 1 == 2&#10;more">…</failure></testcase>
<testcase classname="tests.interop.test_a" name="test_two"><properties>
  <property name="proves Someone" value="AUTH PLAIN"/><property name="version Someone" value=""/>
</properties><skipped message="someone is not installed"/></testcase>
<testcase classname="tests.interop.test_a" name="test_three"><properties>
  <property name="lived_with HAProxy" value="It says | and &lt;this&gt;."/>
  <property name="version HAProxy" value="3.0"/>
</properties></testcase>
<testcase classname="tests.test_b" name="test_without_a_peer"/>
</testsuite></testsuites>
"""


def test_the_page_of_peers_says_what_a_report_says(tmp_path: Path) -> None:
    make_peers = maker("make_peers")
    file = tmp_path / "report.xml"
    file.write_text(REPORT, encoding="utf-8")
    report = make_peers.read(file)
    page = make_peers.page(report)
    assert "Last run: 2026-03-07, Debian, Python 3.13. Tests: 2 passed, 1 failed, 1 skipped." in page
    assert "| Postfix smtp | 3.10.1 | STARTTLS (1); 8BITMIME (1, 1 failed) |" in page
    assert "| Someone | not there | AUTH PLAIN (0, 1 skipped) |" in page
    assert "- **HAProxy**: It says \\| and \\<this>." in page
    assert "- test_a::test_one: failed, assert 1 == 2 (1)" in page
    assert "- test_a::test_two: skipped, someone is not installed (1)" in page
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings[:3] == [
        "## Mail servers that relay to it",
        "## Proxies and submission servers before it",
        "## Clients and libraries",
    ]
    assert [name for name, peer in report.peers.items() if peer.passed] == ["Postfix smtp", "HAProxy"]


def test_a_peer_that_the_run_did_not_show_is_missed(tmp_path: Path) -> None:
    make_peers = maker("make_peers")
    file = tmp_path / "report.xml"
    file.write_text(REPORT, encoding="utf-8")
    said = make_peers.main(["--check", str(file)])
    assert "the run shows nothing of curl" in said
    assert "docs/peers.md does not name" not in said
