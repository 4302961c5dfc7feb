"""Text becomes values here and nowhere else: paths, domains, literals, parameters, xtext.

Everything takes and returns `str`, does no I/O and keeps no state. What does not obey the grammar raises
`GrammarError`; its text is for the log, the caller chooses the reply. Nothing returned from here holds a
control or an invisible character, in any mode. `lenient` stands for the option
`lenient_address_parsing`: what is malformed is then kept as it was sent.
"""

import ipaddress
import re

__all__ = [
    "GrammarError",
    "address_key",
    "decode_xtext",
    "encode_xtext",
    "has_forbidden_characters",
    "is_helo_name",
    "parse_address_literal",
    "parse_domain",
    "parse_mailbox",
    "parse_parameters",
    "split_path",
]


class GrammarError(ValueError):
    """The text does not obey the grammar; the message says where, in printable ASCII."""


# --------------------------------------------------------------------------------------------------------
# Characters

# C0 and DEL, C1, zero width space, word joiner, byte order mark. A lone surrogate stands for an octet that
# was not UTF-8: let through, it would raise where the text is next encoded.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff\ud800-\udfff]")


def has_forbidden_characters(text: str) -> bool:
    """Tell whether text holds a control or an invisible character, which no mode lets in."""
    return _FORBIDDEN.search(text) is not None


def _refuse_forbidden(text: str) -> None:
    if match := _FORBIDDEN.search(text):
        raise GrammarError(f"forbidden character U+{ord(match[0]):04X} at position {match.start()}")


def _refuse_longer(text: str, octets: int, what: str) -> None:
    if len(text.encode()) > octets:
        raise GrammarError(f"{what} is longer than {octets} octets")


# --------------------------------------------------------------------------------------------------------
# MAIL FROM:<path> and RCPT TO:<path>

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"


def _common_path(keyword: str) -> re.Pattern[str]:
    """Compile the form nearly all clients send: `<>` or an ASCII dot-string at an ASCII domain.

    A hyphen stands only between letters and digits here, so `xn--` never matches. ESMTP parameters are
    only looked at so far that they are printable ASCII.
    """
    any_case = "".join(f"[{letter}{letter.lower()}]" for letter in keyword)
    address = rf"{_ATEXT}++(?:\.{_ATEXT}++)*+@[A-Za-z0-9]++(?:[.-][A-Za-z0-9]++)*+"
    return re.compile(rf"{any_case} *: *<(|{address})>(?![^ ]) *+([ -~]*+)")


_COMMON_FROM, _COMMON_TO = _common_path("FROM").fullmatch, _common_path("TO").fullmatch

# An address this short breaks neither the limits of RFC 5321 4.5.3.1 nor the 63 octets of a DNS label.
_SHORT = 64


def split_path(argument: str, keyword: str, lenient: bool = False) -> tuple[str, str]:
    """Split what follows MAIL or RCPT into the address and the text of its parameters.

    `keyword` is "FROM" or "TO". The address of `<>` is "", and refusing it as a recipient is the caller's
    part. So is asking for SMTPUTF8: look at the argument for that, since the address of a client that sent
    `xn--` is not ASCII either.
    """
    # The fast path: 0.6-0.8 us a call, where the functions below need 4-5.
    match = (_COMMON_FROM if keyword == "FROM" else _COMMON_TO)(argument)
    if match is not None and (len(argument) <= _SHORT or len(match[1]) <= _SHORT):
        return match.groups()  # type: ignore[return-value]  # two groups, and both match
    return _split_any_path(argument, keyword, lenient)


# "Since it has been a common source of errors, it is worth noting that spaces are not permitted on either
# side of the colon following FROM in the MAIL command or TO in the RCPT command." (RFC 5321 3.3) They are
# sent all the same, and do no harm.
_OPENING = {keyword: re.compile(rf" *{keyword} *: *", re.ASCII | re.IGNORECASE) for keyword in ("FROM", "TO")}

# "A-d-l = At-domain *( "," At-domain )", before a colon (RFC 5321 4.1.2).
_ROUTE = re.compile(r'@[^<>":\[]*+:')

# "Quoted-string = DQUOTE *QcontentSMTP DQUOTE" (RFC 5321 4.1.2): `>` and `@` in it end nothing.
_QUOTED = r'"(?:[^"\\]|\\.)*+"'

_PATH = re.compile(rf'<((?:{_ROUTE.pattern})?+(?:{_QUOTED}(?=[@>]))?+[^<>"]*+)>')
_LENIENT_PATH = re.compile(r"<([^<>]*)>")


def _split_any_path(argument: str, keyword: str, lenient: bool) -> tuple[str, str]:
    _refuse_forbidden(argument)
    path, rest = _cut_path(argument, keyword, lenient)
    if lenient:
        path = path.strip(" ")
    # "Mail-parameters" and "Rcpt-parameters" follow after SP (RFC 5321 4.1.1.2 and 4.1.1.3).
    elif rest and not rest.startswith(" "):
        raise GrammarError("no space between > and the parameters")
    return _parse_path(path, keyword, lenient), rest.lstrip(" ")


def _cut_path(argument: str, keyword: str, lenient: bool) -> tuple[str, str]:
    """Find the text between the angle brackets and the text behind them."""
    opening = _OPENING[keyword].match(argument)
    if opening is None:
        raise GrammarError(f"{keyword}: does not follow the verb")
    start = opening.end()
    if not argument.startswith("<", start):
        raise GrammarError("the address is not in angle brackets")
    match = _PATH.match(argument, start) or (_LENIENT_PATH.match(argument, start) if lenient else None)
    if match is None:
        raise GrammarError("no > ends the path, or a quote or a < is where none may be")
    return match[1], argument[match.end() :]


def _parse_path(path: str, keyword: str, lenient: bool) -> str:
    # "Reverse-path = Path / "<>"" (RFC 5321 4.1.2).
    if not path:
        return ""
    # "The maximum total length of a reverse-path or forward-path is 256 octets (including the punctuation
    # and element separators)." (RFC 5321 4.5.3.1.3)
    if not lenient:
        _refuse_longer(f"<{path}>", 256, "path")
    mailbox = _drop_route(path, lenient)
    # Not even leniently, where `@host:` alone would turn into the empty reverse path.
    if not mailbox:
        raise GrammarError("no address follows the source route")
    return _parse_mailbox(mailbox, keyword, lenient)


def _drop_route(path: str, lenient: bool) -> str:
    # "Note that this form, the so-called "source route", MUST BE accepted, SHOULD NOT be generated, and
    # SHOULD be ignored." (RFC 5321 4.1.2)
    route = _ROUTE.match(path)
    if route is None:
        return path
    if not lenient:
        for domain in route[0][1:-1].split(",@"):
            parse_domain(domain)
    return path[route.end() :]


# --------------------------------------------------------------------------------------------------------
# Mailboxes

# What stands before the @: a quoted string, else all up to the last @, else everything.
_BEFORE_AT = re.compile(rf"{_QUOTED}(?=@|$)|.*(?=@)|.*")

# "qtextSMTP = %d32-33 / %d35-91 / %d93-126", "quoted-pairSMTP = %d92 %d32-126" (RFC 5321 4.1.2), and
# "qtextSMTP =/ UTF8-non-ascii" (RFC 6531 3.3).
# Told by what is not in it: a set that runs to U+10FFFF takes 2-5 ms to compile.
_QUOTED_STRING = re.compile(r'"(?:[^\x00-\x1f"\\\x7f]|\\[ -~])*+"')

# "atext =/ UTF8-non-ascii" (RFC 6531 3.3).
_NOT_ATEXT = re.compile(r'[\x00-\x20"(),:;<>@\[\\\]\x7f]')


def parse_mailbox(text: str, *, lenient: bool = False) -> str:
    """Check a mailbox that stands in no path, as in the parameter AUTH, and put its domain into normal form."""
    _refuse_forbidden(text)
    return _parse_mailbox(text, "FROM", lenient)


def _parse_mailbox(mailbox: str, keyword: str, lenient: bool) -> str:
    """Check `Local-part "@" ( Domain / address-literal )` and put its domain into normal form."""
    local_part = _BEFORE_AT.match(mailbox)[0]  # type: ignore[index]  # its last branch matches anything
    if local_part == mailbox:
        return _without_domain(mailbox, keyword, lenient)
    if not lenient:
        _check_local_part(local_part)
    return f"{local_part}@{_parse_host(mailbox[len(local_part) + 1 :], lenient)}"


def _without_domain(mailbox: str, keyword: str, lenient: bool) -> str:
    # "... as well as the special case of "RCPT TO:<Postmaster>" (with no domain specification), MUST be
    # supported." (RFC 5321 4.5.1)
    if lenient or (keyword == "TO" and mailbox.lower() == "postmaster"):
        return mailbox
    raise GrammarError("address has no domain")


def _check_local_part(text: str) -> None:
    # "The maximum total length of a user name or other local-part is 64 octets." (RFC 5321 4.5.3.1.1)
    _refuse_longer(text, 64, "local part")
    if text.startswith('"'):
        if _QUOTED_STRING.fullmatch(text) is None:
            raise GrammarError("malformed quoted local part")
        return
    if match := _NOT_ATEXT.search(text):
        raise GrammarError(f"{match[0]!a} in the local part needs quotes")
    # "Dot-string = Atom *("." Atom)" (RFC 5321 4.1.2): no atom is empty.
    if "" in text.split("."):
        raise GrammarError("local part is empty, begins or ends with a dot or has two in a row")


def _parse_host(text: str, lenient: bool) -> str:
    if not text.startswith("["):
        return parse_domain(text, lenient=lenient)
    try:
        return parse_address_literal(text)
    except GrammarError:
        if lenient:
            return text
        raise


def address_key(address: str) -> str:
    """Return what two addresses have in common that differ in case only (not casefold: "ß" and "ss" are two)."""
    if address.isascii():
        return address.lower()
    # The Kelvin sign is no "K": a mailbox written with it must not be taken for another.
    return "".join([c if not c.isascii() and c.lower()[0].isascii() else c.lower() for c in address])


# --------------------------------------------------------------------------------------------------------
# Domains and address literals

# "sub-domain = Let-dig [Ldh-str]", "Ldh-str = *( ALPHA / DIGIT / "-" ) Let-dig" (RFC 5321 4.1.2), and
# "Labels must be 63 characters or less." (RFC 1035 2.3.1).
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

# "A-labels" carry this prefix (RFC 5890 2.3.2.1).
_A_LABEL = re.compile(r"(?:^|\.)xn--", re.IGNORECASE | re.ASCII)


def parse_domain(text: str, *, lenient: bool = False) -> str:
    """Check a domain and return it, an internationalised one in Unicode and lower case.

    An ASCII domain keeps its case. `lenient` keeps a malformed one as sent; control and invisible
    characters raise nevertheless.
    """
    _refuse_forbidden(text)
    try:
        return _parse_strict_domain(text)
    except GrammarError:
        if lenient:
            return text
        raise


def _parse_strict_domain(text: str) -> str:
    # "The maximum total length of a domain name or number is 255 octets." (RFC 5321 4.5.3.1.2)
    _refuse_longer(text, 255, "domain")
    if text.isascii() and not _A_LABEL.search(text):
        _check_labels(text)
        return text
    return _to_unicode(text)


def _check_labels(domain: str) -> None:
    for label in domain.split("."):
        if not label:
            raise GrammarError("domain is empty, begins or ends with a dot or has two in a row")
        if _LABEL.fullmatch(label) is None:
            raise GrammarError(f"malformed label {label!a} in the domain")


def _to_unicode(domain: str) -> str:
    import idna  # here, since it costs 10 ms and few servers ever see such a domain

    # "sub-domain =/ U-label" (RFC 6531 3.3). There and back, so that only a name that has an ASCII form
    # passes and both spellings of a name come out as one.
    try:
        ascii_form = idna.encode(domain, uts46=True)
        unicode_form = idna.decode(ascii_form)
    except UnicodeError as error:
        raise GrammarError(f"domain {domain!a} is not valid IDNA 2008") from error
    _check_labels(ascii_form.decode("ascii"))
    return unicode_form


def parse_address_literal(text: str) -> str:
    """Check `[192.0.2.1]` or `[IPv6:2001:db8::1]`, brackets included, and return its normal form.

    Every other tag raises, since none is registered.
    """
    if not (text.startswith("[") and text.endswith("]")):
        raise GrammarError("address literal is not in square brackets")
    content = text[1:-1]
    try:
        # "IPv6-address-literal = "IPv6:" IPv6-addr" (RFC 5321 4.1.3); ABNF strings have no case.
        if content[:5].lower() == "ipv6:":
            return f"[IPv6:{_normal_ipv6(content[5:])}]"
        return f"[{ipaddress.IPv4Address(content)}]"
    except ValueError:
        raise GrammarError(f"{text!a} is neither an IPv4 nor an IPv6 address literal") from None


def _normal_ipv6(text: str) -> str:
    # The module reads zones, the grammar of RFC 5321 has none.
    if "%" in text:
        raise GrammarError("an IPv6 address literal has no zone")
    address = ipaddress.IPv6Address(text)
    # Spelt out, since `str` of a mapped address changed with Python 3.13.
    return str(address) if address.ipv4_mapped is None else f"::ffff:{address.ipv4_mapped}"


_HELO_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HELO_NAME = re.compile(rf"(?=.{{1,255}}$){_HELO_LABEL}(?:\.{_HELO_LABEL})*")


def is_helo_name(text: str) -> bool:
    """Tell whether a client's HELO argument looks like a domain or an address literal.

    Underscores and single labels pass: real clients send them. Non-ASCII does not: at EHLO the client
    cannot know yet whether SMTPUTF8 is spoken here.
    """
    if not text.startswith("["):
        return _HELO_NAME.fullmatch(text) is not None
    try:
        parse_address_literal(text)
    except GrammarError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------
# ESMTP parameters

# "esmtp-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")" (RFC 5321 4.1.2)
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")

# "esmtp-value =/ UTF8-non-ascii" (RFC 6531 3.3); the white space beyond ASCII is no part of a value.
_WHITE_SPACE = re.compile(r"\s")


def parse_parameters(text: str) -> list[tuple[str, str | None]]:
    """Read the parameters of MAIL and RCPT, in order: keyword in upper case, value or None without `=`.

    Values stay as sent: `SIZE=` has "", and who knows the parameter decodes its xtext.
    """
    _refuse_forbidden(text)
    # "Mail-parameters = esmtp-param *(SP esmtp-param)" (RFC 5321 4.1.2); several spaces are harmless.
    parameters = [_parse_parameter(word) for word in text.split(" ") if word]
    seen = set()
    for keyword, _ in parameters:
        if keyword in seen:
            raise GrammarError(f"parameter {keyword} is given twice")
        seen.add(keyword)
    return parameters


def _parse_parameter(word: str) -> tuple[str, str | None]:
    # "esmtp-param = esmtp-keyword ["=" esmtp-value]" (RFC 5321 4.1.2). Its esmtp-value holds no "=", but
    # senders put base64 with its padding there.
    keyword, equals, value = word.partition("=")
    if _KEYWORD.fullmatch(keyword) is None:
        raise GrammarError(f"malformed parameter keyword {keyword!a}")
    if not value.isascii() and _WHITE_SPACE.search(value):
        raise GrammarError(f"white space in the value of {keyword}")
    return keyword.upper(), value if equals else None


# --------------------------------------------------------------------------------------------------------
# xtext (RFC 3461 4)

# "xtext = *( xchar / hexchar )". "xchar = any ASCII CHAR between "!" (33) and "~" (126) inclusive, except
# for "+" and "="."
_XCHARS = re.compile(r"[!-*,-<>-~]*")

# And "hexchar = ASCII "+" immediately followed by two upper case hexadecimal digits".
_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
_XTEXT = re.compile(rf"(?:[!-*,-<>-~]|{_HEXCHAR.pattern})*+")

# Each octet's xtext: "Any ASCII CHAR between "!" and "~" inclusive, except for "+" and "=", MAY be encoded
# as itself."
_XTEXT_OF = [chr(octet) if _XCHARS.fullmatch(chr(octet)) else f"+{octet:02X}" for octet in range(256)]


def decode_xtext(text: str) -> str:
    """Decode an xtext whose octets are UTF-8; control and invisible characters never come out of it."""
    if "+" not in text and _XCHARS.fullmatch(text):
        return text
    if _XTEXT.fullmatch(text) is None:
        raise GrammarError(f"{text!a} is not xtext")
    octets = _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")
    try:
        decoded = octets.decode()
    except UnicodeDecodeError:
        raise GrammarError(f"xtext {text!a} does not decode to UTF-8") from None
    _refuse_forbidden(decoded)
    return decoded


def encode_xtext(text: str) -> str:
    """Encode text as xtext, the inverse of `decode_xtext`: what that would refuse raises here."""
    if _XCHARS.fullmatch(text):
        return text
    _refuse_forbidden(text)
    return "".join([_XTEXT_OF[octet] for octet in text.encode()])
