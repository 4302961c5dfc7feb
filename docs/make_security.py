"""Write the table of docs/security.md from the marks ``promises`` of the tests; ``make docs`` runs this.

What is promised stands below, in the order of the page; which tests show it is what the tests themselves say. A test
keeps the page true: each promise has a test, and each mark names a promise.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("security.md")
TESTS = Path(__file__).parent.parent / "tests"
BEGIN = '<!-- Made by docs/make_security.py from the marks of the tests: change those, then run "make docs". -->\n'
END = "<!-- The end of what is made. -->\n"

# Section → its promises. A test names both: @pytest.mark.promises("Memory", "A client that …").
PROMISES: dict[str, tuple[str, ...]] = {
    "The end of a message": (
        "CRLF . CRLF ends a message, and nothing else does; the start of the data counts as a CRLF.",
        "However its octets are cut into packets, it gets the same reply and is stored the same.",
        "A leading dot is removed behind a real CRLF only.",
        'With bare_newline "normalize", the default, a handler gets CR and LF only as CRLF.',
        'With "reject" a message with a bare CR or LF is read to its end and refused; then the connection ends.',
        'With "accept" the content is untouched.',
        "A NUL in a message is refused with 550, unless BINARYMIME or bare_newline accept allows it.",
        "Lines of a message may have any length.",
    ),
    "Messages in chunks (BDAT)": (
        "However commands and chunks are cut into packets, replies and message are the same.",
        "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
        "The size of a chunk is decimal digits; what is anything else ends the connection.",
        "What is too large is consumed and answered with 552, and so is what follows until RSET.",
        "DATA and BDAT do not mix in one message.",
        "The end of the connection, or of TLS, inside a chunk delivers nothing.",
    ),
    "TLS": (
        "What stands behind STARTTLS, be it part of a line, is never run under TLS: 554, and the connection ends.",
        "Nothing said before the handshake counts after it: hello, envelope, login, XCLIENT, XFORWARD.",
        "STARTTLS does not reset the limits of a connection.",
        "The handshake has a deadline of its own, which a client that sends in drops does not move.",
        "What is no handshake ends the connection, and nothing of it is run.",
        "By default TLS 1.2 is the oldest version; there is no compression and no renegotiation.",
        "Scanners find nothing weak: sslscan, and nothing above low testssl.sh.",
        "A certificate that proved a client to one host proves nothing to another.",
        "A server name that is none chooses no certificate and reaches no callback.",
    ),
    "Commands": (
        "However commands are cut into packets, the replies are the same.",
        "Keywords are ASCII: no other letter of Unicode passes for one of theirs.",
        "Control characters, NUL and malformed UTF-8 in a command are refused.",
        "A line that is longer than its limit is refused, to the octet.",
        "Of a line without an end no more is kept than its limit and one read of the socket; then 421.",
        "A parameter twice, a flag with a value, a value left out: 501. An unknown one: 555.",
        "xtext is strict, and no CR, LF or NUL comes out of it.",
        "What waits behind HELO, EHLO, AUTH, STARTTLS or DATA is never run: 554, and the connection ends.",
        "With forbid_unauth_pipelining off, what waits behind a refused DATA still ends the connection.",
        "An HTTP request ends the connection with 421.",
    ),
    "Replies and logs": (
        "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
        "A reply line has at most 512 octets (but for challenges of AUTH); longer text becomes several lines.",
        "No text of a client or a handler breaks out of its line of a log.",
        "The text of an exception never reaches the client.",
        "Passwords and tokens, and what they could be guessed from, reach no log at any level.",
    ),
    "Logins": (
        "Passwords, digests and proofs are compared in constant time.",
        "SCRAM does not tell an unknown user from a wrong password.",
        "An exchange of SCRAM cannot be said again.",
        "No login before TLS where STARTTLS is announced, unless allow_insecure_auth is on.",
    ),
    "Proxies": (
        "A PROXY header is read from listed addresses only.",
        "However a PROXY header is cut into packets, it means the same.",
        "A PROXY header has limits of length and time, and a malformed one ends the connection.",
        "A second PROXY header is not read, and what follows the first one before the greeting is refused.",
        "XCLIENT and XFORWARD are announced to listed addresses, and refused with 550 to all others.",
        "XCLIENT or XFORWARD that is refused changes nothing.",
        "XCLIENT that is accepted begins again with the greeting, and forgets what was said before.",
    ),
    "Limits": (
        "Each limit is answered with its reply and is one line in the log, however many commands follow.",
        "Errors, junk commands and refused recipients without a message end the connection.",
        "Recipients that were accepted are not lost by a limit, nor is a client cut off for what your handlers refuse.",
        "A failed login waits for its answer, each longer than the one before; after three AUTH gets 421.",
        "Failed logins may have a budget for each address and account; beyond it nobody looks at the password.",
        "A client that sends a command or a message too slowly, or never reads, ends; an honest slow line passes.",
        "Numbers and rates may be limited for an address, where a /64 of IPv6 counts as one, and over all.",
        "With several workers, numbers and rates hold over all of them; what one that dies had counted is given back.",
        "A connection that is refused for its number or rate costs neither DNS nor TLS.",
        "The process never runs out of descriptors: connections too many get 421, and one line in the log.",
        "Thousands of slow clients do not keep honest ones from being served.",
    ),
    "Memory": (
        "A client that sends faster than it is served, or than its message is read, is paused.",
        "A client that reads no replies is paused, and then the connection ends.",
    ),
    "Nothing is lost": (
        "250 means that the program has the message on the disk: file and folder entry.",
        "kill -9 at any moment loses no message that got 250, and leaves no torn one.",
        "A worker that is killed takes no message with it that got 250; the others go on.",
        "A webhook's message gets 250 when its endpoint has answered 2xx, and not before, kill -9 or not.",
        "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays.",
        "A client that disappears within a message leaves no message.",
        "A signal to end lets running transactions finish; idle clients get 421.",
        "A second signal ends at once, and leaves no half-written message to a reader.",
        "With good and hostile clients at once nothing grows and no message is lost.",
    ),
    "Handing on": (
        "A message that is handed on ends where it ended: dots are doubled, and CR and LF leave as CRLF only.",
        "What does not come to its end here is not ended at the next server: it keeps nothing of it.",
        "250 says that the next server has said it; what goes wrong on the way is 451.",
        "A password goes to the next server under TLS only, or on this host, or where that is allowed.",
        "A message that loops ends.",
    ),
    "Storage": (
        "No file name is made of what a client says, but of a recipient where the path asks for it: one harmless name.",
        "No text of a client breaks out of a header field that the program adds.",
        "What is looked for in a message for a webhook takes bounded time and memory.",
    ),
    "Users": (
        "A login does not tell which users a file has, neither by its answer nor by the work it takes.",
        "However many passwords strangers try, memory stays bounded and other clients log in.",
        "A token counts only if issuer, audience, time and signature are right; a public key signs nothing.",
        "No password, token or key stands in a log.",
        "A file of users is changed as a whole, one change at a time, also with kill -9 in the middle.",
    ),
    "The program": (
        "It does not start as an open relay.",
        "SIGHUP changes the configuration and ends no session.",
        "A transcript shows no password.",
        "Renewed certificates are used as soon as their files have changed.",
        "With user it gives up root for good before it reads a first command.",
    ),
}


def marks() -> Iterator[tuple[str, str, str, str]]:
    """Yield section, promise, file and test of each mark."""
    for path in sorted(TESTS.rglob("test_*.py")):
        if "node_modules" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for section, promise, test in _marks_in(tree, ""):
                yield section, promise, path.relative_to(TESTS.parent).as_posix(), test


def _marks_in(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str, str]]:
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from _marks_in(node, f"{prefix}{node.name}::")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "promises":
                    section, promise = map(ast.literal_eval, mark.args)
                    yield section, promise, prefix + node.name


def problems() -> list[str]:
    """Return what does not fit: promises without a test, marks that name no promise."""
    known = {(section, promise) for section, promises in PROMISES.items() for promise in promises}
    named = {(section, promise): f"{file}::{test}" for section, promise, file, test in marks()}
    return [
        *(f"no test shows {key}" for key in sorted(known - named.keys())),
        *(f"{named[key]} names {key}, which is no promise" for key in sorted(named.keys() - known)),
    ]


def table() -> str:
    """Return the made part of the page."""
    shown: dict[tuple[str, str], dict[str, list[str]]] = {}
    for section, promise, file, test in marks():
        shown.setdefault((section, promise), {}).setdefault(file, []).append(test)
    lines = []
    for section, promises in PROMISES.items():
        lines += [f"### {section}", "", "| promise | shown by |", "|---|---|"]
        lines += [f"| {_cell(promise)} | {_tests(shown.get((section, promise), {}))} |" for promise in promises]
        lines.append("")
    return BEGIN + "\n" + "\n".join(lines) + END


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def _tests(files: dict[str, list[str]]) -> str:
    return "; ".join(f"`{file}`: " + ", ".join(f"`{test}`" for test in tests) for file, tests in files.items())


def page() -> str:
    """Return the page with its made part made anew; what stands around that is written by hand."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return before + table() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
