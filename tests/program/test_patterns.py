"""Address patterns: what matches, what does not, and what is no pattern."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox import ConfigurationError
from pillarbox.program.patterns import Patterns


class TestMatches:
    @pytest.mark.parametrize(
        ("patterns", "inside", "outside"),
        [
            (["joe@example.com"], ["joe@example.com", "JOE@Example.COM"], ["jo@example.com", "joe@example.com.evil"]),
            (["*@example.com"], ["a@example.com", '"x@y"@example.com'], ["a@sub.example.com", "a@example.org"]),
            (["*@*.example.com"], ["a@x.example.com", "a@x.y.example.com"], ["a@example.com", "a@xexample.com"]),
            (["joe+*@example.com"], ["joe+tag@example.com", "joe+@example.com"], ["joe@example.com"]),
            (["postmaster@*"], ["postmaster@any.example"], ["joe@any.example"]),
            (["*@mx.*"], ["a@mx.example"], ['"a@mx."@example.org']),  # in a local part, @ is no @
            (["*@strasse.example"], ["a@STRASSE.example"], ["a@straße.example"]),
            (["strasse@a.example"], ["STRASSE@a.example"], ["straße@a.example"]),
            (["*"], ["a@b", "anything", ""], []),
            (["*@*"], ["a@b"], []),
            ([], [], ["a@b", ""]),
            (["*@example.com", "!root@example.com"], ["a@example.com"], ["root@example.com", "ROOT@example.com"]),
            (["!*@example.com"], ["a@example.org"], ["a@example.com"]),
            (["*", "!*@*.example.com"], ["a@example.com"], ["a@b.example.com"]),
            (["*@bücher.example"], ["a@xn--bcher-kva.example", "a@BÜCHER.example"], ["a@bucher.example"]),
            (["*@xn--bcher-kva.example"], ["a@bücher.example"], []),
            (["a.b@example.com"], [], ["axb@example.com"]),  # a dot is a dot
            (["jo[ei]@example.com"], ["jo[ei]@example.com"], ["joe@example.com"]),
            # All quoted forms are equivalent (RFC 5321 4.1.2).
            (["joe@example.com"], ['"joe"@example.com', '"j\\oe"@example.com'], ['"joe "@example.com']),
            (['"joe"@example.com'], ["joe@example.com", '"JOE"@example.com'], ['"\\"joe\\""@example.com']),
            (["*@example.com", "!root@example.com"], ["a@example.com"], ['"root"@example.com', '"r\\oot"@example.com']),
            (["!root+*@example.com"], ["root@example.com"], ['"root+x"@example.com', '"root+*"@example.com']),
            (
                ['"john doe"@example.com'],
                ['"John Doe"@example.com', '"john\\ doe"@EXAMPLE.com'],
                ["johndoe@example.com"],
            ),
            (['"john *"@example.com'], ['"john doe"@example.com', '"john "@example.com'], ["john@example.com"]),
            (['"*"@example.com'], ['"john doe"@example.com', '""@example.com'], ["joe@example.com"]),
            (['"a\\"b@c"@example.com'], ['"a\\"b@c"@example.com', '"a\\"b\\@c"@example.com'], ["c@example.com"]),
            (["*", '!"john doe"@*'], ['"jane doe"@example.com'], ['"john doe"@example.org']),
            (["a@example.com"], [], ['"', '"@example.com', '"a@example.com', 'a"@example.com']),
        ],
    )
    def test_addresses(self, patterns: list[str], inside: list[str], outside: list[str]) -> None:
        found = Patterns(patterns)
        assert [address for address in inside if address not in found] == []
        assert [address for address in outside if address in found] == []

    def test_all(self) -> None:
        assert Patterns(["*"]).all
        assert not Patterns(["*", "!a@b"]).all
        assert not Patterns(["*@example.com"]).all
        assert not Patterns([]).all

    @pytest.mark.parametrize("pattern", ["*", "*@*", "*@*.com", "joe@*", "*com", "!a@example.com", "*@*."])
    def test_unbounded(self, pattern: str) -> None:
        assert Patterns([pattern]).unbounded
        assert Patterns([pattern, "!*@example.com"]).unbounded

    @pytest.mark.parametrize("pattern", ["*@example.com", "*@*.example.com", "*@*example.com", "*@*.local", "a@host"])
    def test_bounded(self, pattern: str) -> None:
        assert not Patterns([pattern]).unbounded

    @given(st.text(), st.lists(st.text(min_size=1).filter(lambda text: "@" in text)))
    def test_any_address_is_an_answer(self, address: str, texts: list[str]) -> None:
        try:
            patterns = Patterns(texts)
        except ConfigurationError:
            return
        assert (address in patterns) in (True, False)

    def test_many_cost_no_more_than_few(self) -> None:
        patterns = Patterns([f"user{number}@example.com" for number in range(100_000)])
        begun = time.process_time()
        assert all(f"user{number}@example.com" in patterns for number in range(1000))
        assert time.process_time() - begun < 1

    def test_stars_do_not_multiply(self) -> None:
        begun = time.process_time()
        assert "a" * 3000 + "@b" not in Patterns(["*a*a*a*a*a*a*a*c@b", "a*a*@c"])
        assert "abcabc@b" in Patterns(["a*b*c@*"])
        assert time.process_time() - begun < 5


class TestFiles:
    def test_a_pattern_on_each_line(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("# ours\njoe@example.com\n\n*@example.org  # all of it\n!root@example.org\n")
        patterns = Patterns(["file:own", "jim@example.net"], tmp_path)
        for address in ("joe@example.com", "x@example.org", "jim@example.net"):
            assert address in patterns
        assert "root@example.org" not in patterns

    def test_a_quoted_local_part_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text('"john #1"@example.com  # "the first"\n !"j # 2"@example.com#\n*@example.com\n')
        patterns = Patterns(["file:own"], tmp_path)
        assert patterns.written == ("file:own",)
        assert '"john #1"@example.com' in patterns
        assert '"j # 2"@example.com' not in patterns

    def test_a_mark_of_the_byte_order_in_front(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("!root@example.org\n*@example.org\n", encoding="utf-8-sig")
        patterns = Patterns(["file:own"], tmp_path)
        assert "joe@example.org" in patterns
        assert "root@example.org" not in patterns

    def test_an_empty_file_matches_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("# nobody yet\n")
        assert "a@b" not in Patterns(["file:own"], tmp_path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"own: cannot be read: no such file or directory"):
            Patterns(["file:own"], tmp_path)

    def test_a_wrong_line_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("joe@example.com\nexample.org\n")
        with pytest.raises(ConfigurationError, match=r"own, line 2: has no @: write example.org@example.com"):
            Patterns(["file:own"], tmp_path)


BAD_QUOTES = ['"john doe@example.com', '"john doe" @example.com', '"a"b@example.com', '"a b"', '"a\tb"@example.com']


@pytest.mark.parametrize("pattern", ["", " ", "!", "a b@example.com", "joe", *BAD_QUOTES])
def test_no_pattern(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        Patterns([pattern])
