"""Where other servers answer otherwise than ours, and what decides. docs/differences.md is made from this table.

A difference that a run shows must stand here, and what stands here must be shown by a run. ``step`` and ``before`` are
searched for in what the client says, and in what it said before that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from differential.play import Seen

POSTFIX, AIOSMTPD, NODE = "Postfix", "aiosmtpd", "smtp-server"

# Beginnings of an answer to "what decides".
OPEN = "left open: "
POLICY = "policy: "

_FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE


@dataclass(frozen=True)
class Difference:
    """One difference: what the client says, how each server answers, and what decides which of them is right.

    ``ours`` and the values of ``theirs`` are classes of replies, alternatives parted by ``|``; for the aspects
    ``envelope`` and ``content`` they say what the message is then, and only the step is looked at.
    """

    topic: str
    what: str
    step: bytes
    ours: str
    theirs: Mapping[str, str]
    decides: str
    before: bytes = b""
    aspect: str = "reply"

    def explains(self, seen: Seen) -> bool:
        """Whether this is what was seen."""
        if seen.server not in self.theirs or seen.aspect != self.aspect:
            return False
        if not (re.search(self.step, seen.octets, _FLAGS) and re.search(self.before, seen.before, _FLAGS)):
            return False
        known = seen.ours in self.ours.split("|") and seen.theirs in self.theirs[seen.server].split("|")
        return known or self.aspect != "reply"


def explained(seen: Seen) -> Difference | None:
    """Return the entry for what was seen; None where there is none."""
    return next((entry for entry in DIFFERENCES if entry.explains(seen)), None)


def _all(answer: str) -> dict[str, str]:
    return dict.fromkeys((POSTFIX, AIOSMTPD, NODE), answer)


_PATH = rb"\A(MAIL +FROM|RCPT +TO) ?: *<"
_NO_HELLO = rb"\A(?!.*^2 b'(EHLO|HELO))|STARTTLS[^\n]*\n2 b''\Z"

# --- Sentences that decide more than one

_NO_PARAMETERS = (
    'RFC 5321 4.1.1: "Several commands (RSET, DATA, QUIT) are specified as not permitting parameters. In the absence of'
    " specific extensions offered by the server and accepted by the client, clients MUST NOT send such parameters and"
    ' servers SHOULD reject commands containing them as having invalid syntax."'
)
_CHARACTERS = (
    'RFC 5321 4.1.2, of octets above 127 and control characters: "These characters MUST NOT be used in MAIL or RCPT'
    ' commands or other commands that require mailbox names."'
)
_CONTROL = POLICY + "NUL and control characters in a command are refused, whatever the command would do with them."
_TERMINATED = (
    'RFC 5321 4.1.1: "The commands themselves are alphabetic characters terminated by <SP> if parameters follow and'
    ' <CRLF> otherwise."'
)
_VIOLATION = (
    'RFC 5321 3.8: "a server that closes connections in response to commands that are not understood is in violation of'
    ' this specification."'
)
_NO_LIMITS = (
    'RFC 5321 4.5.3.1: "To the maximum extent possible, implementation techniques that impose no limits on the length of'
    ' these objects should be used."'
)
_LINE_LIMIT = POLICY + (
    "a line has one limit, `max_command_length`: nothing beyond it is kept in memory. It is eight times the 512 octets"
    " of RFC 5321 4.5.3.1.4."
)
_LOCAL_PART = "RFC 5321 4.1.2: `Local-part = Dot-string / Quoted-string`"
_DOT_STRING = 'RFC 5321 4.1.2: `Dot-string = Atom *("."  Atom)`: no atom is empty.'
_MAILBOX = 'RFC 5321 4.1.2: `Mailbox = Local-part "@" ( Domain / address-literal )`'
_DOMAIN = 'RFC 5321 4.1.2: `Domain = sub-domain *("." sub-domain)`, `sub-domain = Let-dig [Ldh-str]`'
_LONG_PATH = (
    'RFC 5321 4.5.3.1.3: "The maximum total length of a reverse-path or forward-path is 256 octets (including the'
    ' punctuation and element separators)."'
)
_PATH_IS = 'RFC 5321 4.1.2: `Path = "<" [ A-d-l ":" ] Mailbox ">"`'
_UNKNOWN = (
    'RFC 5321 4.1.1.11: "If the server SMTP does not recognize or cannot implement one or more of the parameters'
    ' associated with a particular MAIL FROM or RCPT TO command, it will return code 555."'
)
_XTEXT = (
    'RFC 3461 4: "hexchar = ASCII "+" immediately followed by two upper case hexadecimal digits", and no other plus sign'
    " is xtext."
)
_LAST_IN_GROUP = (
    'RFC 2920 3.1: "The EHLO, DATA, VRFY, EXPN, TURN, QUIT, and NOOP commands can only appear as the last command in a'
    ' group since their success or failure produces a change of state"'
)
_SAME_STATE = (
    'RFC 5321 4.1.4: "If the commands in a transaction are out of order to the degree that they cannot be processed by'
    ' the server, a 503 failure reply MUST be returned and the SMTP server MUST stay in the same state."'
)
_FIRST_DOT = (
    'RFC 5321 4.5.2: "If the first character is a period and there are other characters on the line, the first character'
    ' is deleted."'
)

DIFFERENCES = (
    # --- Greetings
    Difference(
        "Greetings",
        "EHLO or HELO with several words",
        rb"\A(EHLO|HELO) +\S+ +[^ \r]",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        'RFC 5321 4.1.1.1: `ehlo = "EHLO" SP ( Domain / address-literal ) CRLF`',
    ),
    Difference(
        "Greetings",
        "EHLO or HELO with a tab instead of a space",
        rb"\A(EHLO|HELO)\t",
        "5",
        {POSTFIX: "2"},
        _TERMINATED,
    ),
    Difference(
        "Greetings",
        "EHLO or HELO with a control character",
        rb"\A(EHLO|HELO) [^\r]*[\x00-\x1f][^\n]",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _CONTROL,
    ),
    Difference(
        "Greetings",
        "MAIL without a greeting, at the beginning or after STARTTLS",
        rb"\AMAIL",
        "5",
        {POSTFIX: "2"},
        'RFC 5321 4.1.4: "A session that will contain mail transactions MUST first be initialized by the use of the EHLO'
        ' command." (Postfix asks for it under `smtpd_helo_required`.)',
        before=_NO_HELLO,
    ),
    # --- Verbs
    Difference(
        "Verbs",
        "HELP",
        rb"\AHELP",
        "2",
        {POSTFIX: "5"},
        'RFC 5321 4.1.1.8: "SMTP servers SHOULD support HELP without arguments and MAY support it with arguments."',
    ),
    Difference(
        "Verbs",
        "HELP about what is no command",
        rb"\AHELP +[^ \r]",
        "2",
        {AIOSMTPD: "5"},
        OPEN + "RFC 5321 4.1.1.8 lets a server have help on arguments or not; ours is the same for all.",
    ),
    Difference(
        "Verbs",
        "HTTP",
        rb"\A(GET|POST) \S+ HTTP/",
        "4x",
        {POSTFIX: "2x", AIOSMTPD: "5"},
        POLICY + "a web page must not be able to send mail through a browser; with 421, not 2xx.",
    ),
    Difference(
        "Verbs",
        "a line that begins like no command, or like a header field",
        rb"\A([^A-Z \t\r]|[A-Z]+:)",
        "5",
        {POSTFIX: "2x"},
        _VIOLATION,
    ),
    Difference(
        "Verbs",
        "a lone dot behind the end of data",
        rb"\r\n\.\r\n\.\r\n",
        "25",
        {POSTFIX: "22x"},
        _VIOLATION,
    ),
    Difference(
        "Verbs",
        "VRFY with two words",
        rb"\AVRFY [^\r]* ",
        "2",
        {POSTFIX: "5"},
        OPEN + "`String = Atom / Quoted-string` (RFC 5321 4.1.2) is one word; our 252 says nothing about the mailbox.",
    ),
    Difference(
        "Verbs",
        "VRFY in UTF-8 without SMTPUTF8",
        rb"\AVRFY [^\r]*[\x80-\xff]",
        "5",
        _all("2"),
        _CHARACTERS,
    ),
    Difference(
        "Verbs",
        "ETRN, which only Postfix announces",
        rb"\AETRN",
        "5",
        {POSTFIX: "4"},
        'RFC 5321 3.8: "Servers are expected to be tolerant of unknown commands, issuing a 500 reply and awaiting further'
        ' instructions from the client."',
    ),
    Difference(
        "Verbs",
        "a command behind white space",
        rb"\A[ \t]+[A-Z]",
        "5",
        {POSTFIX: "2"},
        "RFC 5321 4.1.1: \"The commands themselves are alphabetic characters\"",
    ),
    Difference(
        "Verbs",
        "a tab behind a command",
        rb"\A[^\r]*\t\r\n",
        "5",
        {POSTFIX: "2"},
        POLICY + "NUL and control characters in a command are refused. RFC 5321 4.1.1 would have it otherwise: \"SMTP"
        ' receivers SHOULD tolerate trailing white space before the terminating <CRLF>"; spaces are tolerated.',
    ),
    Difference(
        "Verbs",
        "NOOP with a control character",
        rb"\ANOOP [^\r]*[\x00-\x08]",
        "5",
        _all("2"),
        _CONTROL,
    ),
    Difference(
        "Verbs",
        "NOOP with an octet that is not UTF-8",
        rb"\ANOOP [^\r]*\xff",
        "5",
        {AIOSMTPD: "2", NODE: "2"},
        'RFC 5321 2.4: "Commands and replies are composed of characters from the ASCII character set"; of what is more,'
        " RFC 6531 allows UTF-8.",
    ),
    Difference(
        "Verbs",
        "RSET, DATA and QUIT with a parameter",
        rb"\A(RSET|DATA|QUIT) +[^ \r]",
        "5",
        {POSTFIX: "2x", NODE: "2|2x|3"},
        _NO_PARAMETERS,
    ),
    Difference(
        "Verbs",
        "a verb with a letter that only Unicode takes for an ASCII one (`ſtarttls`)",
        "\\Aſtarttls".encode(),
        "5",
        {NODE: "2x"},
        POLICY + "keywords are ASCII: there is no Unicode case folding.",
    ),
    # --- Lines
    Difference(
        "Lines",
        "a command of 512 to 4,096 octets",
        rb"\A(NOOP|X)[^\r]{507,4091}\r\n",
        "2",
        {AIOSMTPD: "5"},
        _NO_LIMITS,
    ),
    Difference(
        "Lines",
        "a command of more than 4,096 octets",
        rb"\ANOOP [^\r]{4092,}",
        "5|4x",
        {POSTFIX: "2", AIOSMTPD: "5", NODE: "2"},
        _LINE_LIMIT,
    ),
    Difference(
        "Lines",
        "a CR that is not part of a CRLF, in a command",
        rb"\A[^\n]*\r[^\n]",
        "5",
        _all("2"),
        'RFC 5321 2.3.8, of CRLF: "Conforming implementations MUST NOT recognize or generate any other character or'
        ' character sequence as a line terminator."',
    ),
    Difference(
        "Lines",
        "commands behind NOOP or VRFY, sent at once",
        rb"\A(NOOP|VRFY)[^\n]*\n.",
        "22|25|222",
        {POSTFIX: "5x"},
        POLICY + "out of turn is what waits behind a command that changes what the next means: EHLO, HELO, AUTH, STARTTLS"
        " and DATA. " + _LAST_IN_GROUP + ", which asks it of clients, and Postfix holds them to it.",
    ),
    # --- Addresses
    Difference(
        "Addresses",
        "a quoted local part with a space, @ or >",
        _PATH + rb'"[^"]*[ @>]',
        "2",
        {NODE: "5"},
        "RFC 5321 4.1.2: `Quoted-string = DQUOTE *QcontentSMTP DQUOTE`",
    ),
    Difference(
        "Addresses",
        "an octet that is neither ASCII nor UTF-8",
        _PATH + rb"[^>]*[\xfc\xff]",
        "5",
        {AIOSMTPD: "2", NODE: "2"},
        "RFC 6531 3.3: `atext =/ UTF8-non-ascii`",
    ),
    Difference(
        "Addresses",
        "a control character, or UTF-8 without SMTPUTF8",
        _PATH + rb"[^>]*[\x00-\x1f\x80-\xff]",
        "5",
        _all("2"),
        _CHARACTERS,
    ),
    Difference(
        "Addresses",
        "quotes in the wrong place",
        _PATH + rb'[^\r]*"',
        "5",
        _all("2"),
        _LOCAL_PART,
    ),
    Difference(
        "Addresses",
        "a local part that begins or ends with a dot, or has two in a row",
        _PATH + rb"(\.|[^>@]*\.\.|[^>@]*\.@)",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _DOT_STRING,
    ),
    Difference(
        "Addresses",
        "a space or a comment",
        _PATH + rb'[^">]*[ (]',
        "5",
        _all("2"),
        "RFC 5321 4.1.2: `Atom = 1*atext`, which holds neither spaces nor comments.",
    ),
    Difference(
        "Addresses",
        "a sender without a domain",
        rb"\AMAIL FROM: ?<[^@>]+>",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _MAILBOX,
    ),
    Difference(
        "Addresses",
        "a recipient without a domain that is not the postmaster",
        rb"\ARCPT TO: ?<(?!postmaster>)[^@>]+>",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _MAILBOX,
    ),
    Difference(
        "Addresses",
        "no recipient",
        rb"\ARCPT TO: ?<>",
        "5",
        {AIOSMTPD: "2"},
        'RFC 5321 4.1.2: `Reverse-path = Path / "<>"`, but `Forward-path = Path`',
    ),
    Difference(
        "Addresses",
        "a source route that is malformed or without an address",
        _PATH + rb"@[^>]*:",
        "5",
        {POSTFIX: "2", NODE: "2"},
        'RFC 5321 4.1.2: `A-d-l = At-domain *( "," At-domain )`, `At-domain = "@" Domain`',
    ),
    Difference(
        "Addresses",
        "no local part",
        _PATH + rb"@[^:>]*>",
        "5",
        {POSTFIX: "2"},
        _MAILBOX,
    ),
    Difference(
        "Addresses",
        "two @",
        _PATH + rb"[^\"@>]+@[^@>]*@",
        "5",
        {POSTFIX: "2"},
        _MAILBOX,
    ),
    Difference(
        "Addresses",
        "a dot at the domain's end",
        _PATH + rb"[^>]*\.>",
        "5",
        {POSTFIX: "2"},
        _DOMAIN,
    ),
    Difference(
        "Addresses",
        "a label that begins or ends with a hyphen",
        _PATH + rb"[^>]*@([^>]*\.)?(-|[^>]*-[.>])",
        "5",
        {AIOSMTPD: "2", NODE: "2"},
        _DOMAIN,
    ),
    Difference(
        "Addresses",
        "an underscore in the domain",
        _PATH + rb"[^>]*@[^>]*_",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        'RFC 5321 4.1.2: "characters outside the set of alphabetic characters, digits, and hyphen MUST NOT appear in'
        ' domain name labels for SMTP clients or servers. In particular, the underscore character is not permitted."',
    ),
    Difference(
        "Addresses",
        "a literal that is none",
        _PATH + rb"[^>]*@\[",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        'RFC 5321 4.1.2: `address-literal = "[" ( IPv4-address-literal / IPv6-address-literal / General-address-literal )'
        ' "]"`, where no tag of the last kind is registered.',
    ),
    Difference(
        "Addresses",
        "an IPv4 address without brackets",
        _PATH + rb"[^>]*@[\d.]+>",
        "2",
        {POSTFIX: "5"},
        OPEN + "by RFC 5321 4.1.2 it is a domain: `Let-dig = ALPHA / DIGIT`.",
    ),
    Difference(
        "Addresses",
        "a local part of more than 64 octets",
        _PATH + rb"[^@>]{65,}@",
        "5",
        _all("2"),
        'RFC 5321 4.5.3.1.1: "The maximum total length of a user name or other local-part is 64 octets."',
    ),
    Difference(
        "Addresses",
        "a label of more than 63 octets",
        _PATH + rb"[^>]*@[^>]*[^.>]{64}",
        "5",
        {AIOSMTPD: "2", NODE: "2"},
        'RFC 1035 2.3.1: "Labels must be 63 characters or less."',
    ),
    Difference(
        "Addresses",
        "a path of more than 256 octets",
        _PATH + rb"[^>]{255,}>",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _LONG_PATH,
    ),
    Difference(
        "Addresses",
        "a character in the local part that needs quotes",
        _PATH + rb'[^">@]*[(),:;<\[\]\\]',
        "5",
        _all("2"),
        "RFC 5321 4.1.2: `Atom = 1*atext`, which holds none of the specials of RFC 5322 3.2.3.",
    ),
    Difference(
        "Addresses",
        "a label that begins with `xn--` and is no A-label",
        _PATH + rb"[^>]*@([^>]*\.)?xn--",
        "5",
        _all("2"),
        POLICY + "malformed domains are refused, and such a name can be shown in no way (RFC 5891 5.4).",
    ),
    Difference(
        "Addresses",
        "a character in the domain that names have not",
        _PATH + rb"[^>]*@[^>\[]*[^A-Z0-9.@>_\[-]",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _DOMAIN,
    ),
    Difference(
        "Addresses",
        "a path of 256 octets",
        _PATH + rb"[^>]{240,254}>",
        "2",
        {NODE: "5"},
        _LONG_PATH,
    ),
    # --- The form of MAIL and RCPT
    Difference(
        "The form of MAIL and RCPT",
        "an address without angle brackets, or with one of them",
        rb"\A(MAIL +FROM|RCPT +TO) ?: *([^< ]|<[^>]*\r\n)",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        _PATH_IS,
    ),
    Difference(
        "The form of MAIL and RCPT",
        "angle brackets twice",
        rb"\A(MAIL +FROM|RCPT +TO) ?: ?(<<|<[^>]*>>)",
        "5",
        {POSTFIX: "2"},
        _PATH_IS,
    ),
    Difference(
        "The form of MAIL and RCPT",
        "a space before the colon",
        rb"\A(MAIL +FROM|RCPT +TO) +:",
        "2",
        {POSTFIX: "5", AIOSMTPD: "5"},
        POLICY + 'RFC 5321 3.3 says "spaces are not permitted on either side of the colon"; some clients send them, and'
        " they do no harm.",
    ),
    Difference(
        "The form of MAIL and RCPT",
        "two spaces behind the verb",
        rb"\A(MAIL|RCPT)  ",
        "2",
        {NODE: "5"},
        POLICY + 'RFC 5321 4.1.1.2 has one space in "MAIL FROM:"; more do no harm.',
    ),
    Difference(
        "The form of MAIL and RCPT",
        "parameters behind no space, or behind a tab",
        rb"\A(MAIL|RCPT) [^>]*>[^ \r]",
        "5",
        _all("2"),
        'RFC 5321 4.1.1.2: `mail = "MAIL FROM:" Reverse-path [SP Mail-parameters] CRLF`',
    ),
    # --- Parameters
    Difference(
        "Parameters",
        "parameters after HELO",
        rb"\AMAIL [^>]*> [^\r]",
        "2",
        {AIOSMTPD: "5"},
        OPEN + 'RFC 5321 4.1.1.2: "If service extensions were negotiated, the MAIL command may also carry parameters'
        ' associated with a particular service extension." What a server does otherwise is not said.',
        before=rb"2 b'HELO(?!.*EHLO)",
    ),
    Difference(
        "Parameters",
        "a parameter twice",
        rb"\A(MAIL|RCPT) [^>]*> (?:.* )?([A-Z0-9]+)(=\S*)? (?:.* )?\2\b",
        "5",
        {POSTFIX: "2", AIOSMTPD: "2"},
        POLICY + "each parameter appears once: two servers in a row must not take different ones for the one that counts.",
    ),
    Difference(
        "Parameters",
        "AUTH as a parameter, where AUTH is announced",
        rb"\AMAIL [^>]*>.* AUTH=",
        "2",
        {AIOSMTPD: "5"},
        'RFC 4954 5: "servers that advertise support for this extension MUST support the AUTH parameter to the MAIL FROM'
        ' command even when the client has not authenticated itself to the server."',
    ),
    Difference(
        "Parameters",
        "xtext that is none, in AUTH, ENVID or ORCPT",
        rb"> (?:.* )?(AUTH|ENVID|ORCPT)=[^ \r]*\+",
        "5",
        {POSTFIX: "2", NODE: "2"},
        _XTEXT,
    ),
    Difference(
        "Parameters",
        "ORCPT without an address",
        rb"> (?:.* )?ORCPT=[^;\r]*;[ \r]",
        "5",
        {POSTFIX: "2"},
        POLICY + "RFC 3461 4.2 has xtext there, which may be empty; an address of nobody cannot be reported on.",
    ),
    Difference(
        "Parameters",
        "REQUIRETLS, which only ours announces, under TLS",
        rb"\AMAIL .* REQUIRETLS",
        "2",
        {POSTFIX: "5", AIOSMTPD: "5"},
        _UNKNOWN,
    ),
    Difference(
        "Parameters",
        "a parameter that is unknown, malformed or of the other command",
        rb"\A(MAIL|RCPT) [^>]*> +[^ \r]",
        "5",
        {NODE: "2"},
        _UNKNOWN,
    ),
    Difference(
        "Parameters",
        "MAIL behind one that was refused for its SIZE",
        rb"\AMAIL",
        "2",
        {POSTFIX: "5"},
        'RFC 5321 4.1.4: "If the transaction beginning command argument is not acceptable, a 501 failure reply MUST be'
        ' returned and the SMTP server MUST stay in the same state."',
        before=rb"SIZE=1000001(?!.*\n2 b'(RSET|EHLO|HELO))",
    ),
    # --- Messages
    Difference(
        "Messages",
        "a NUL",
        rb"\0",
        "5",
        _all("2"),
        POLICY + 'a NUL in a message is refused; RFC 5321 4.1.1.4: "use of control characters other than SP, HT, CR,'
        ' and LF may cause problems and SHOULD be avoided when possible."',
        before=rb"(3 b'DATA|2 b['\"]RCPT)[^\n]*\Z",
    ),
    Difference(
        "Messages",
        "a line of more than 1,000 octets",
        rb"[^\n]{999,}\n",
        "2",
        {AIOSMTPD: "5"},
        _NO_LIMITS,
        before=rb"3 b'DATA[^\n]*\Z",
    ),
    Difference(
        "Messages",
        "two dots behind a bare LF",
        rb"[^\r]\n\.\.",
        "both stay",
        {NODE: "one of them goes"},
        _FIRST_DOT + " A bare LF begins no line (RFC 5321 2.3.8).",
        aspect="content",
    ),
    Difference(
        "Messages",
        "a dot that begins a line and is not followed by another",
        rb"(\A|\r\n)\.[^.\r]|(\A|\r\n)\.\r[^\n]",
        "without that dot",
        {NODE: "with that dot"},
        _FIRST_DOT,
        aspect="content",
    ),
    Difference(
        "Messages",
        "a recipient given twice, also in another case",
        rb"",
        "the later one stands in its place",
        {AIOSMTPD: "both stand there"},
        POLICY + "nobody gets a message twice. RFC 5321 2.4 has local parts compared with case; no mail server that is"
        " in use has mailboxes that differ in nothing else.",
        before=rb"RCPT TO *: *<([^>]*)>.*RCPT TO *: *<\1>",
        aspect="envelope",
    ),
    Difference(
        "Messages",
        "an empty sender",
        rb"",
        "an empty address",
        {AIOSMTPD: "the address `<>`"},
        OPEN + "how an application is told is not the RFC's.",
        before=rb"MAIL FROM: ?<>",
        aspect="envelope",
    ),
    Difference(
        "Messages",
        "a quoted local part that needs no quotes",
        rb"",
        "as it was sent",
        {AIOSMTPD: "without its quotes"},
        OPEN + 'RFC 5321 4.1.2: "all quoted forms MUST be treated as equivalent".',
        before=rb'<(\\)?"',
        aspect="envelope",
    ),
    Difference(
        "Messages",
        "an A-label (`xn--…`)",
        rb"",
        "in Unicode",
        {AIOSMTPD: "as it was sent"},
        OPEN + "both spellings of a name are shown as one.",
        before=rb"@xn--",
        aspect="envelope",
    ),
    Difference(
        "Messages",
        "an IPv6 literal in another spelling",
        rb"",
        "in the normal form of RFC 5952",
        {AIOSMTPD: "as it was sent"},
        OPEN + "all spellings of an address are shown as one.",
        before=rb"@\[ipv6:",
        aspect="envelope",
    ),
    # --- BDAT
    Difference(
        "BDAT",
        "an empty chunk that is not the last",
        rb"\ABDAT 0\r",
        "2",
        {POSTFIX: "5"},
        "RFC 3030 2: `chunk-size ::= 1*DIGIT`",
    ),
    Difference(
        "BDAT",
        "MAIL, RCPT or DATA behind a chunk that came too early",
        rb"\A(MAIL|RCPT|DATA)",
        "2|3",
        {POSTFIX: "5"},
        _SAME_STATE,
        before=rb"5 b['\"]BDAT(?!.*\n2 b'(RSET|EHLO|HELO))",
    ),
    Difference(
        "BDAT",
        "MAIL behind a last chunk that came too early",
        rb"\AMAIL",
        "5",
        {POSTFIX: "2"},
        _SAME_STATE,
        before=rb"2 b['\"]MAIL(?!.*\n2 b'(RSET|EHLO|HELO)).*5 b['\"]BDAT \d+ LAST",
    ),
    Difference(
        "BDAT",
        "a chunk before EHLO",
        rb"\ABDAT",
        "5",
        {POSTFIX: "5x"},
        _VIOLATION + " (Postfix takes the chunk for commands out of turn.)",
        before=_NO_HELLO,
    ),
    Difference(
        "BDAT",
        "two spaces before the size",
        rb"\ABDAT  ",
        "5x",
        {POSTFIX: "2"},
        POLICY + 'after a BDAT that is malformed (RFC 3030 2: `bdat-cmd ::= "BDAT" SP chunk-size [ SP end-marker ] CR'
        " LF`) the connection is closed: what follows may be a part of a message, and must not become commands.",
    ),
    # --- Pipelining, STARTTLS and AUTH
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "a message sent together with a DATA that is refused",
        rb"\ADATA\r\n.",
        "5x",
        {AIOSMTPD: "555", NODE: "555"},
        POLICY + "what was meant as a message never becomes commands. " + _LAST_IN_GROUP,
    ),
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "input sent together with EHLO, HELO, DATA or AUTH",
        rb"\A(EHLO|HELO|DATA|AUTH)[^\n]*\n.",
        "5x",
        {AIOSMTPD: "22|32", NODE: "22|32"},
        _LAST_IN_GROUP,
    ),
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "input sent together with STARTTLS",
        rb"\ASTARTTLS\r\n.",
        "5x",
        _all("2x"),
        POLICY + "it may be an attack (CVE-2011-0411), so the connection ends; the others begin TLS without it.",
    ),
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "STARTTLS under TLS",
        rb"\ASTARTTLS",
        "5",
        {AIOSMTPD: "2x"},
        'RFC 3207 4.2: "A server MUST NOT return the STARTTLS extension in response to an EHLO command received after a'
        ' TLS handshake has completed."',
        before=rb"2 b'STARTTLS",
    ),
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "AUTH in a transaction",
        rb"\AAUTH",
        "5",
        {AIOSMTPD: "2", NODE: "2"},
        'RFC 4954 4: "The AUTH command is not permitted during a mail transaction."',
        before=rb"2 b['\"]MAIL",
    ),
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "the name of a mechanism in small letters",
        rb"\AAUTH (?-i:plain)",
        "2",
        {AIOSMTPD: "5"},
        'RFC 5321 2.4: "Verbs and argument values (e.g., "TO:" or "to:" in the RCPT command and extension name'
        ' keywords) are not case sensitive"',
    ),
    Difference(
        "Pipelining, STARTTLS and AUTH",
        "AUTH after HELO",
        rb"\AAUTH",
        "2",
        {AIOSMTPD: "5"},
        OPEN + "a client that says HELO has not seen that AUTH is offered; RFC 4954 does not say what a server does.",
        before=rb"2 b'HELO",
    ),
)  # fmt: skip
