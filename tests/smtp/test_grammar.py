"""What the grammar accepts, what it refuses and why, and what never comes out of it."""

import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import ParamSpec, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pillarbox.smtp import grammar
from pillarbox.smtp.grammar import (
    GrammarError,
    address_key,
    decode_xtext,
    encode_xtext,
    has_forbidden_characters,
    is_helo_name,
    parse_address_literal,
    parse_domain,
    parse_parameters,
    split_path,
)

P = ParamSpec("P")
T = TypeVar("T")

FORBIDDEN = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    "\u200b",
    "\u2060",
    "\ufeff",
    "\ud800",
    "\udfff",
]
LABEL_63 = "x" * 63
DOMAIN_255 = ".".join([LABEL_63] * 3 + ["y" * 63])


def outcome(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | None:
    """Return what the call returns, or None where it raises `GrammarError`."""
    try:
        return function(*arguments, **keywords)
    except GrammarError:
        return None


# --------------------------------------------------------------------------------------------------------
# Paths

ACCEPTED_PATHS = [
    # argument, address, parameters
    ("FROM:<a@b.example>", "a@b.example", ""),
    ("FROM:<a@b.example> SIZE=10", "a@b.example", "SIZE=10"),
    ("FROM:<a@b.example>   SIZE=10  BODY=7BIT", "a@b.example", "SIZE=10  BODY=7BIT"),
    ("FROM:<a@b.example>  ", "a@b.example", ""),
    ("FROM:<>", "", ""),
    ("FROM:<> SIZE=10", "", "SIZE=10"),
    ("from:<a@b>", "a@b", ""),
    ("fRoM : <a@b>", "a@b", ""),
    (" FROM  :  <a@b>", "a@b", ""),
    ("FROM:<User@Example.COM>", "User@Example.COM", ""),
    ("FROM:<a.b+c-d_e@b-c.d--e.example>", "a.b+c-d_e@b-c.d--e.example", ""),
    ("FROM:<!#$%&'*+-/=?^_`{|}~@b>", "!#$%&'*+-/=?^_`{|}~@b", ""),
    ("FROM:<-@b>", "-@b", ""),
    ("FROM:<a@1.2.3.4>", "a@1.2.3.4", ""),
    # Quoted local parts, as sent.
    ('FROM:<"a b"@c>', '"a b"@c', ""),
    ('FROM:<"plain"@c>', '"plain"@c', ""),
    ('FROM:<""@c>', '""@c', ""),
    ('FROM:<"a>b@c"@d> SIZE=1', '"a>b@c"@d', "SIZE=1"),
    (r'FROM:<"a\"b\\\>"@d>', r'"a\"b\\\>"@d', ""),
    ('FROM:<"..a."@d>', '"..a."@d', ""),
    ('FROM:<"@x,@y:z"@d>', '"@x,@y:z"@d', ""),
    ('FROM:<"é"@d>', '"é"@d', ""),
    # Source routes, dropped.
    ("FROM:<@a:user@c>", "user@c", ""),
    ("FROM:<@a.example,@b.example:user@c> SIZE=1", "user@c", "SIZE=1"),
    ('FROM:<@a:"u:>x"@c>', '"u:>x"@c', ""),
    ("FROM:<@a:user@[IPv6:::1]>", "user@[IPv6:::1]", ""),
    # Internationalised.
    ("FROM:<用户@例え.jp>", "用户@例え.jp", ""),
    ("FROM:<ü.ü@b>", "ü.ü@b", ""),
    ("FROM:<a@Bücher.Example>", "a@bücher.example", ""),
    ("FROM:<a@xn--bcher-kva.Example>", "a@bücher.example", ""),
    ("FROM:<a@mail.XN--BCHER-KVA.example>", "a@mail.bücher.example", ""),
    # Address literals.
    ("FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]", ""),
    ("FROM:<a@[IPv6:2001:DB8:0:0::1]>", "a@[IPv6:2001:db8::1]", ""),
    # Lengths at the limit.
    (f"FROM:<{'a' * 64}@b>", f"{'a' * 64}@b", ""),
    (f"FROM:<{'ü' * 32}@b>", f"{'ü' * 32}@b", ""),
    (f"FROM:<a@{LABEL_63}.example>", f"a@{LABEL_63}.example", ""),
    (f"FROM:<a@{DOMAIN_255[:252]}>", f"a@{DOMAIN_255[:252]}", ""),
]


@pytest.mark.parametrize(("argument", "address", "parameters"), ACCEPTED_PATHS)
def test_accepted_path(argument: str, address: str, parameters: str) -> None:
    assert split_path(argument, "FROM") == (address, parameters)


@pytest.mark.parametrize(("argument", "address", "parameters"), ACCEPTED_PATHS)
def test_lenient_changes_nothing_about_a_good_path(argument: str, address: str, parameters: str) -> None:
    assert split_path(argument, "FROM", lenient=True) == (address, parameters)


@pytest.mark.parametrize(("argument", "address", "parameters"), ACCEPTED_PATHS)
def test_a_recipient_is_read_like_a_sender(argument: str, address: str, parameters: str) -> None:
    recipient = argument.replace("FROM", "TO").replace("from", "to").replace("fRoM", "tO")
    assert split_path(recipient, "TO") == (address, parameters)


# What is refused in every mode: there is no path, or it would come out as another one.
REFUSED_PATHS = [
    ("", "FROM: does not follow"),
    ("FROM", "FROM: does not follow"),
    ("FROM <a@b>", "FROM: does not follow"),
    ("TO:<a@b>", "FROM: does not follow"),
    ("FROMX:<a@b>", "FROM: does not follow"),
    ("<a@b>", "FROM: does not follow"),
    ("FROM:", "not in angle brackets"),
    ("FROM:a@b", "not in angle brackets"),
    ("FROM:a@b <c@d>", "not in angle brackets"),
    ("FROM:x<a@b>", "not in angle brackets"),
    ("FROM:\N{FULLWIDTH LESS-THAN SIGN}a@b>", "not in angle brackets"),
    ("FROM:<a@b", "no > ends the path"),
    ("FROM:<", "no > ends the path"),
    ("FROM:<<a@b>>", "no > ends the path"),
    ("FROM:<@a:>", "no address follows the source route"),
    ("FROM:\t<a@b>", r"forbidden character U\+0009 at position 5"),
    ("FROM:<a@b>\r\nRCPT TO:<c@d>", r"forbidden character U\+000D"),
    ("FROM:<a@b> X=\0", r"forbidden character U\+0000"),
]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(("argument", "reason"), REFUSED_PATHS)
def test_refused_path(argument: str, reason: str, lenient: bool) -> None:
    with pytest.raises(GrammarError, match=reason):
        split_path(argument, "FROM", lenient=lenient)


# What only lenient reading accepts: argument, reason of the strict refusal, lenient result.
MALFORMED_PATHS = [
    ("FROM:<a@b>SIZE=1", "no space between", ("a@b", "SIZE=1")),
    ("FROM:< a@b >", "needs quotes", ("a@b", "")),
    ("FROM:< >", "no domain", ("", "")),
    ("FROM:<a>", "no domain", ("a", "")),
    ('FROM:<"a b">', "no domain", ('"a b"', "")),
    ('FROM:<"a@b">', "no domain", ('"a@b"', "")),
    ("FROM:<Postmaster>", "no domain", ("Postmaster", "")),
    ("FROM:<@b>", "local part is empty", ("@b", "")),
    ("FROM:<a@>", "domain is empty", ("a@", "")),
    ("FROM:<@>", "local part is empty", ("@", "")),
    ("FROM:<.a@b>", "begins or ends with a dot", (".a@b", "")),
    ("FROM:<a.@b>", "begins or ends with a dot", ("a.@b", "")),
    ("FROM:<a..b@c>", "two in a row", ("a..b@c", "")),
    ("FROM:<a b@c>", "' ' in the local part", ("a b@c", "")),
    ("FROM:<a@b@c>", "'@' in the local part", ("a@b@c", "")),
    ("FROM:<a,b@c>", "',' in the local part", ("a,b@c", "")),
    (r"FROM:<a\,b@c>", "in the local part", (r"a\,b@c", "")),
    ('FROM:<"a@c>', "no > ends the path, or a quote", ('"a@c', "")),
    ('FROM:<a"b"@c>', "no > ends the path, or a quote", ('a"b"@c', "")),
    ('FROM:<"a"b@c>', "no > ends the path, or a quote", ('"a"b@c', "")),
    ('FROM:<a."b"@c>', "no > ends the path, or a quote", ('a."b"@c', "")),
    ('FROM:<"a"@b@c>', "malformed label 'b@c'", ('"a"@b@c', "")),
    (r'FROM:<"\é"@c>', "malformed quoted local part", (r'"\é"@c', "")),
    ("FROM:<a@b_c>", "malformed label 'b_c'", ("a@b_c", "")),
    ("FROM:<a@-b>", "malformed label '-b'", ("a@-b", "")),
    ("FROM:<a@b-.c>", "malformed label 'b-'", ("a@b-.c", "")),
    ("FROM:<a@b.>", "begins or ends with a dot", ("a@b.", "")),
    ("FROM:<a@.b>", "begins or ends with a dot", ("a@.b", "")),
    ("FROM:<a@b..c>", "two in a row", ("a@b..c", "")),
    ("FROM:<a@b c>", "malformed label 'b c'", ("a@b c", "")),
    ("FROM:<a@xn--a>", "not valid IDNA", ("a@xn--a", "")),
    ("FROM:<a@XN--.example>", "not valid IDNA", ("a@XN--.example", "")),
    ("FROM:<a@b_ü>", "not valid IDNA", ("a@b_ü", "")),
    ("FROM:<a@☃.example>", "not valid IDNA", ("a@☃.example", "")),
    ("FROM:<a@ü.>", "begins or ends with a dot", ("a@ü.", "")),
    ("FROM:<a@b@ü>", "'@' in the local part", ("a@b@ü", "")),
    ("FROM:<a@[192.0.2.256]>", "neither an IPv4 nor", ("a@[192.0.2.256]", "")),
    ("FROM:<a@[x-tag:data]>", "neither an IPv4 nor", ("a@[x-tag:data]", "")),
    ("FROM:<a@[192.0.2.1>", "not in square brackets", ("a@[192.0.2.1", "")),
    ("FROM:<@a,b:user@c>", "malformed label 'a,b'", ("user@c", "")),
    ("FROM:<@:user@c>", "domain is empty", ("user@c", "")),
    ("FROM:<@a_b:user@c>", "malformed label 'a_b'", ("user@c", "")),
    (f"FROM:<{'a' * 65}@b>", "local part is longer than 64", (f"{'a' * 65}@b", "")),
    (f"FROM:<{'ü' * 33}@b>", "local part is longer than 64", (f"{'ü' * 33}@b", "")),
    (f"FROM:<a@{'x' * 64}>", "malformed label", (f"a@{'x' * 64}", "")),
    (f"FROM:<a@{DOMAIN_255[:253]}>", "path is longer than 256", (f"a@{DOMAIN_255[:253]}", "")),
    (f"FROM:<@{DOMAIN_255}:a@b>", "path is longer than 256", ("a@b", "")),
]


@pytest.mark.parametrize(("argument", "reason", "result"), MALFORMED_PATHS)
def test_malformed_path_is_refused_unless_lenient(argument: str, reason: str, result: tuple[str, str]) -> None:
    with pytest.raises(GrammarError, match=reason):
        split_path(argument, "FROM")
    assert split_path(argument, "FROM", lenient=True) == result


@pytest.mark.parametrize("name", ["Postmaster", "postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain_as_a_recipient(name: str) -> None:
    assert split_path(f"TO:<{name}> NOTIFY=NEVER", "TO") == (name, "NOTIFY=NEVER")
    with pytest.raises(GrammarError, match="no domain"):
        split_path(f"FROM:<{name}>", "FROM")


def test_other_recipients_need_a_domain() -> None:
    with pytest.raises(GrammarError, match="no domain"):
        split_path("TO:<po\N{LATIN SMALL LETTER LONG S}tmaster>", "TO")


def test_the_keyword_has_no_unicode_case() -> None:
    with pytest.raises(GrammarError, match="TO: does not follow"):
        split_path("T\N{MASCULINE ORDINAL INDICATOR}:<a@b>", "TO")


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
@pytest.mark.parametrize("argument", ["FROM : <@r:ab@cd> X=1", 'FROM:<"a b"@[192.0.2.1]>', "FROM:<>", "FROM:<ü@xn--a>"])
def test_forbidden_character_in_every_position(argument: str, character: str, lenient: bool) -> None:
    for position in range(len(argument) + 1):
        with pytest.raises(GrammarError, match="forbidden character"):
            split_path(argument[:position] + character + argument[position:], "FROM", lenient=lenient)


def test_a_long_hostile_path_does_not_hang() -> None:
    for piece in ('"', "\\", '"\\', "@", "@a,", "a.", "a-", "<", "[", ".xn--"):
        for argument in (f"FROM:<{piece * 4000}", f"FROM:<{piece * 4000}>", f'FROM:<"{piece * 4000}"@b>'):
            outcome(split_path, argument, "FROM")
            outcome(split_path, argument, "FROM", lenient=True)


PIECES = st.sampled_from(
    [
        "a",
        "B",
        "1",
        "-",
        ".",
        "@",
        "<",
        ">",
        '"',
        "\\",
        ":",
        ",",
        " ",
        "[",
        "]",
        "_",
        "+",
        "=",
        "ü",
        "\t",
        "\u200b",
        "FROM:<",
        "from : <",
        "a@b",
        "@a:",
        "xn--bcher-kva",
        "xn--",
        "[192.0.2.1]",
        "[IPv6:::1]",
        "> SIZE=1",
        "x" * 30,
    ]
)
ARGUMENTS = st.lists(PIECES, max_size=12).map("".join)
PATHS = ARGUMENTS.map("FROM:<{}>".format) | ARGUMENTS


@given(PATHS)
def test_fast_and_slow_path_agree(argument: str) -> None:
    for lenient in (False, True):
        slow = outcome(grammar._split_any_path, argument, "FROM", lenient)
        assert outcome(split_path, argument, "FROM", lenient=lenient) == slow


ATOMS = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=40)
LABELS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,40}[A-Za-z0-9])?", fullmatch=True)


@given(st.lists(ATOMS, min_size=1, max_size=3), st.lists(LABELS, min_size=1, max_size=6))
def test_fast_and_slow_path_agree_on_common_addresses(atoms: list[str], labels: list[str]) -> None:
    argument = f"FROM:<{'.'.join(atoms)}@{'.'.join(labels)}> SIZE=1"
    slow = outcome(grammar._split_any_path, argument, "FROM", lenient=False)
    assert outcome(split_path, argument, "FROM") == slow


def test_the_common_form_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(grammar, "_split_any_path")
    assert split_path("FROM:<a.b@c-d.example> SIZE=1", "FROM") == ("a.b@c-d.example", "SIZE=1")
    assert split_path("to: <a@b.example>", "TO") == ("a@b.example", "")
    assert split_path("FROM:<> BODY=8BITMIME", "FROM") == ("", "BODY=8BITMIME")


@given(PATHS | st.text())
@example("FROM:<a@xn--tba>")
def test_whatever_comes_in_only_clean_text_comes_out(argument: str) -> None:
    for lenient in (False, True):
        result = outcome(split_path, argument, "FROM", lenient=lenient)
        if result is not None:
            address, parameters = result
            assert not has_forbidden_characters(address + parameters)
            assert address.startswith('"') or not set(address) & set("<>")


@given(PATHS)
def test_strict_results_are_lenient_results(argument: str) -> None:
    strict = outcome(split_path, argument, "FROM")
    if strict is not None:
        assert split_path(argument, "FROM", lenient=True) == strict


@given(PATHS)
def test_a_strict_address_is_in_normal_form(argument: str) -> None:
    strict = outcome(split_path, argument, "FROM")
    if strict is not None:
        assert split_path(f"FROM:<{strict[0]}>", "FROM") == (strict[0], "")


def test_addresses_compare_without_case() -> None:
    assert address_key("User@Example.COM") == address_key("uSER@example.com")
    assert address_key("strasse@x") != address_key("straße@x")  # two mailboxes: neither may lose the other its mail
    assert address_key("a@x") != address_key("b@x")
    assert address_key("\N{KELVIN SIGN}ate@x") != address_key("kate@x")
    assert address_key("M\N{LATIN CAPITAL LETTER U WITH DIAERESIS}ller@x") == address_key("m\xfcller@x")


# --------------------------------------------------------------------------------------------------------
# Domains and literals


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE", "EXAMPLE"),
        ("r3---sn.example", "r3---sn.example"),
        ("0.1", "0.1"),
        (DOMAIN_255, DOMAIN_255),
        ("xn--bcher-kva.de", "bücher.de"),
        ("BÜCHER.De", "bücher.de"),
        ("bu\u0308cher.de", "bücher.de"),
        ("straße.de", "straße.de"),
        ("例え\N{IDEOGRAPHIC FULL STOP}jp", "例え.jp"),
        ("\N{FULLWIDTH LATIN SMALL LETTER A}.example", "a.example"),
    ],
)
def test_domain(text: str, domain: str) -> None:
    assert parse_domain(text) == domain
    assert parse_domain(text, lenient=True) == domain


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "a.",
        "a b",
        "a@b",
        "[192.0.2.1]",
        "a_b",
        "-a",
        "a-",
        "x" * 64,
        f"{DOMAIN_255}x",
        f"{DOMAIN_255}.x",
        "xn--",
        "xn--a",
        "xn--é",
        "xn--mgba3gch31f060k.xn--",
        "☃.de",
        "-ü.de",
        "ü" * 64,
        "ü" * 4000,
        "a\N{FULLWIDTH COMMERCIAL AT}ü",
        "\N{ACCOUNT OF}.de",
        "例え\N{IDEOGRAPHIC FULL STOP}",
        "א1.aא",
    ],
)
def test_malformed_domain_is_refused_unless_lenient(text: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse_domain(text)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert parse_domain(text, lenient=True) == text


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
def test_forbidden_character_in_a_domain(character: str, lenient: bool) -> None:
    with pytest.raises(GrammarError, match="forbidden character"):
        parse_domain(f"exa{character}mple.com", lenient=lenient)


@given(st.text("abz019-", max_size=30).map("xn--{}".format))
def test_any_punycode_decodes_to_a_clean_domain_or_raises(text: str) -> None:
    result = outcome(parse_domain, text)
    if result is not None:
        assert not has_forbidden_characters(result)
        assert parse_domain(result) == result


@given(st.text(max_size=40))
def test_any_text_is_a_clean_domain_or_raises(text: str) -> None:
    result = outcome(parse_domain, text)
    if result is not None:
        assert not has_forbidden_characters(result)
        assert parse_domain(result) == result


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[0.0.0.0]", "[0.0.0.0]"),
        ("[IPv6:::]", "[IPv6:::]"),
        ("[ipV6:2001:DB8:0:0::1]", "[IPv6:2001:db8::1]"),
        ("[IPv6:2001:0db8:0000:0000:0000:0000:0000:0001]", "[IPv6:2001:db8::1]"),
        ("[IPv6:::ffff:192.0.2.1]", "[IPv6:::ffff:192.0.2.1]"),
        ("[IPv6:::FFFF:c000:201]", "[IPv6:::ffff:192.0.2.1]"),
    ],
)
def test_address_literal(text: str, literal: str) -> None:
    assert parse_address_literal(text) == literal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "192.0.2.1",
        "[192.0.2.1",
        "192.0.2.1]",
        "[[192.0.2.1]]",
        "[192.0.2]",
        "[192.0.2.256]",
        "[192.0.2.01]",
        "[192.0.2.1/24]",
        "[ 192.0.2.1]",
        "[192.0.2.1 ]",
        "[192.0.2.1\n]",
        "[3221225985]",
        "[1.2.3.٤]",
        "[2001:db8::1]",
        "[IPv6:]",
        "[IPv6:192.0.2.1]",
        "[IPv6:fe80::1%eth0]",
        "[IPv6:2001:db8::1/64]",
        "[IPv6::::]",
        "[IPv6: ::1]",
        "[tag:content]",
        "[IPv4:192.0.2.1]",
        "[IPv6:::1]\n",
        "[IPv6:12345::]",
    ],
)
def test_malformed_address_literal(text: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse_address_literal(text)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@given(st.ip_addresses())
def test_every_address_has_a_literal_in_normal_form(address: IPv4Address | IPv6Address) -> None:
    text = f"[{address}]" if address.version == 4 else f"[IPv6:{address.exploded.upper()}]"
    literal = parse_address_literal(text)
    assert parse_address_literal(literal) == literal


@pytest.mark.parametrize(
    "name",
    [
        "mail.example.com",
        "localhost",
        "DESKTOP-1",
        "my_host.example",
        "_",
        "1.2.3.4",
        "xn--bcher-kva.de",
        LABEL_63,
        DOMAIN_255,
        "[192.0.2.1]",
        "[IPv6:::1]",
    ],
)
def test_helo_name(name: str) -> None:
    assert is_helo_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a@b",
        "(a)",
        "a;b",
        "a/b",
        "a:b",
        "bücher.de",
        "x" * 64,
        f"{DOMAIN_255}.x",
        "a\n",
        "a\r\nb",
        "a\0",
        "[",
        "[]",
        "[x]",
        "[::1]",
        "[tag:x]",
        "[192.0.2.1]\n",
        "<a>",
        '"a"',
    ],
)
def test_no_helo_name(name: str) -> None:
    assert not is_helo_name(name)


# --------------------------------------------------------------------------------------------------------
# Characters


@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
def test_forbidden_character(character: str) -> None:
    assert has_forbidden_characters(character)
    assert has_forbidden_characters(f"a{character}b")


def test_all_other_characters_pass() -> None:
    others = {chr(number) for number in range(sys.maxunicode + 1) if not 0xD800 <= number < 0xE000}
    assert not has_forbidden_characters("".join(others - set(FORBIDDEN)))
    assert not has_forbidden_characters("")


# --------------------------------------------------------------------------------------------------------
# Parameters


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", []),
        ("   ", []),
        ("SIZE=10", [("SIZE", "10")]),
        ("size=10 Body=8bitMIME", [("SIZE", "10"), ("BODY", "8bitMIME")]),
        ("  SIZE=10   SMTPUTF8  ", [("SIZE", "10"), ("SMTPUTF8", None)]),
        ("SIZE=", [("SIZE", "")]),
        ("SIZE", [("SIZE", None)]),
        ("ENVID=QQ==", [("ENVID", "QQ==")]),
        ("X==", [("X", "=")]),
        ("SIZE=1,BODY,X", [("SIZE", "1,BODY,X")]),
        ("AUTH=<> AUTH-X=+2B", [("AUTH", "<>"), ("AUTH-X", "+2B")]),
        ("8BIT- 9=9", [("8BIT-", None), ("9", "9")]),
        ("ORCPT=utf-8;ü@例え.jp", [("ORCPT", "utf-8;ü@例え.jp")]),
        ("X=!\"#$%&'()*+,-./:;<>?@[\\]^_`{|}~", [("X", "!\"#$%&'()*+,-./:;<>?@[\\]^_`{|}~")]),
    ],
)
def test_parameters(text: str, parameters: list[tuple[str, str | None]]) -> None:
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SIZE=1 SIZE=2", "SIZE is given twice"),
        ("SIZE=1 X size", "SIZE is given twice"),
        ("=1", "malformed parameter keyword ''"),
        ("-A=1", "malformed parameter keyword '-A'"),
        ("A_B", "malformed parameter keyword 'A_B'"),
        ("SİZE=1", "malformed parameter keyword"),
        ("\N{LATIN SMALL LETTER LONG S}IZE=1", "malformed parameter keyword"),
        ("SIZE = 1", "malformed parameter keyword ''"),
        ("SIZE=1\tX", r"forbidden character U\+0009"),
        ("X=a\u00a0b", "white space in the value of X"),
        ("X=a\u2028b", "white space in the value of X"),
        ("X=a\u3000", "white space in the value of X"),
    ],
)
def test_malformed_parameters(text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        parse_parameters(text)


@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
def test_forbidden_character_in_parameters(character: str) -> None:
    text = "SIZE=10 X"
    for position in range(len(text) + 1):
        with pytest.raises(GrammarError, match="forbidden character"):
            parse_parameters(text[:position] + character + text[position:])


@given(st.lists(PIECES, max_size=12).map("".join) | st.text())
def test_parameters_come_out_clean_and_unique(text: str) -> None:
    result = outcome(parse_parameters, text)
    if result is not None:
        keywords = [keyword for keyword, _ in result]
        assert len(set(keywords)) == len(keywords)
        assert all(keyword.isascii() and keyword == keyword.upper() for keyword in keywords)
        written = " ".join(keyword if value is None else f"{keyword}={value}" for keyword, value in result)
        assert parse_parameters(written) == result


# --------------------------------------------------------------------------------------------------------
# xtext


@pytest.mark.parametrize(
    ("xtext", "text"),
    [
        ("", ""),
        ("abc", "abc"),
        ("rfc822;a@b.c", "rfc822;a@b.c"),
        ("a+2Bb+3Dc", "a+b=c"),
        ("+20", " "),
        ("+41", "A"),
        ("+C3+BC", "ü"),
        ("+F0+9F+93+AE", "📮"),
        ("+2B2B", "+2B"),
    ],
)
def test_decode_xtext(xtext: str, text: str) -> None:
    assert decode_xtext(xtext) == text


@pytest.mark.promises("Commands", "xtext is strict, and no CR, LF or NUL comes out of it.")
@pytest.mark.parametrize(
    ("xtext", "reason"),
    [
        ("+", "is not xtext"),
        ("+2", "is not xtext"),
        ("+2b", "is not xtext"),
        ("+2G", "is not xtext"),
        ("++2B", "is not xtext"),
        ("+ 2", "is not xtext"),
        ("+٣٣", "is not xtext"),
        ("a=b", "is not xtext"),
        ("a b", "is not xtext"),
        ("ü", "is not xtext"),
        ("a\n", "is not xtext"),
        ("+2B\n", "is not xtext"),
        ("\x7f", "is not xtext"),
        ("+FF", "does not decode to UTF-8"),
        ("+C3", "does not decode to UTF-8"),
        ("+C0+80", "does not decode to UTF-8"),
        ("+ED+A0+80", "does not decode to UTF-8"),
    ],
)
def test_malformed_xtext(xtext: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        decode_xtext(xtext)


@pytest.mark.promises("Commands", "xtext is strict, and no CR, LF or NUL comes out of it.")
@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
def test_forbidden_characters_never_come_out_of_xtext(character: str) -> None:
    octets = character.encode("utf-8", "surrogatepass")
    with pytest.raises(GrammarError):
        decode_xtext("a" + "".join(f"+{octet:02X}" for octet in octets))
    with pytest.raises(GrammarError, match="forbidden character"):
        encode_xtext(f"a{character}")


@given(st.text())
def test_xtext_round_trip(text: str) -> None:
    encoded = outcome(encode_xtext, text)
    assert (encoded is None) == has_forbidden_characters(text)
    if encoded is not None:
        assert encoded.isascii()
        assert not set(encoded) & set(" =")
        assert decode_xtext(encoded) == text


@given(st.text("+0123456789ABCDEFabz=") | st.text())
def test_decoded_xtext_encodes_again(xtext: str) -> None:
    text = outcome(decode_xtext, xtext)
    if text is not None:
        assert decode_xtext(encode_xtext(text)) == text


# --------------------------------------------------------------------------------------------------------
# The module


def test_idna_is_loaded_only_for_an_internationalised_domain() -> None:
    script = (
        "import sys\n"
        "from pillarbox.smtp.grammar import split_path\n"
        "split_path('FROM:<\"a b\"@b.example>', 'FROM')\n"
        "assert 'idna' not in sys.modules\n"
        "split_path('FROM:<a@xn--bcher-kva.example>', 'FROM')\n"
        "assert 'idna' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
