"""Write docs/differences.md from the table of differences; ``make docs`` runs this, a test keeps the page true.

``--check`` writes nothing and fails where the page is not what the table says.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from differential.dialogues import DIALOGUES  # noqa: E402 - found by the line above
from differential.differences import DIFFERENCES  # noqa: E402
from differential.entry import AIOSMTPD, NODE, OPEN, POLICY, POSTFIX, Difference  # noqa: E402

PAGE = Path(__file__).with_name("differences.md")

_HEAD = """\
<!-- Made by docs/make_differences.py from tests/differential/differences*.py: change it there, then "make docs". -->

# Differences

The same dialogues are played against this server, Postfix's `smtpd`, aiosmtpd and npm's smtp-server, command by
command: {scripted} scripted ones (tests/differential/dialogues.py: every verb, order, parameter, form of address, line
end and end of data) and random ones (tests/differential/randomly.py; {random} for each server in a usual run). Compared
are the class of each reply, whether the connection is closed, and, for the two that show it, the envelope and the
message that arrive.

```sh
pytest tests/differential                                        # the scripted ones, and the usual seeds
DIFFERENTIAL_SEEDS=1000:4000 pytest tests/differential -k random  # other seeds
```

Each difference that was found stands below, with the sentence that decides it. A run fails where it finds one that is
not here, and prints the shortest dialogue that shows it; and where a line is here that no scripted dialogue shows any
more. Last seen with Postfix 3.7.11, aiosmtpd 1.4.6 and smtp-server 3.21.6.

How the servers are set: ours with its defaults, `hide_dsn=False`, a size limit and AUTH without TLS, and the limits for
wrong commands raised. Postfix with what is its default since 3.9 (`smtpd_forbid_bare_newline = normalize`,
`smtpd_forbid_unauth_pipelining = yes`), SMTPUTF8, relaying allowed, limits for errors raised. The others with their
defaults, SMTPUTF8, a size limit, AUTH and STARTTLS. A server that does not announce an extension is not asked about it.

- `5xx, closed`: the server closes the connection behind its reply. `2xx 5xx`: two replies.
- –: as ours, or the extension is not offered.
- **policy**: not an RFC but this server's own rule decides, as [Options](options.md) and the tests of threats have it.
- **left open**: both answers are allowed.

The class is all that is compared: a 550 for a 501 is no difference here.
"""

_NAMES = (POSTFIX, AIOSMTPD, NODE)


def page() -> str:
    """Return the whole page."""
    parts = [_HEAD.format(scripted=len(DIALOGUES), random=400)]
    for topic, entries in itertools.groupby(DIFFERENCES, lambda entry: entry.topic):
        parts.append(f"\n## {topic}\n\n| the client says | ours | {' | '.join(_NAMES)} | what decides |\n")
        parts.append("|---|---|---|---|---|---|\n")
        parts += map(_row, entries)
    return "".join(parts)


def _row(entry: Difference) -> str:
    theirs = [_shown(entry.theirs[name], entry) if name in entry.theirs else "–" for name in _NAMES]
    decides = entry.decides.replace(POLICY, "**policy**: ", 1).replace(OPEN, "**left open**: ", 1)
    cells = (entry.what, _shown(entry.ours, entry), *theirs, decides)
    return "| " + " | ".join(map(_cell, cells)) + " |\n"


def _cell(text: str) -> str:
    """Escape what Markdown would take for markup, but for what stands in backquotes."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "\\<").replace("*(", "\\*(") for part in parts[::2]]
    return "`".join(parts)


def _shown(answers: str, entry: Difference) -> str:
    if entry.aspect != "reply":
        return answers
    return "; ".join(map(_replies, answers.split("|")))


def _replies(classes: str) -> str:
    digits = classes.rstrip("x")
    return " ".join(f"{digit}xx" for digit in digits) + (", closed" if digits != classes else "")


def main(arguments: list[str]) -> str | None:
    """Write the page, or compare it; return what is wrong, None where nothing is."""
    if "--check" not in arguments:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        return 'docs/differences.md is not what tests/differential/differences.py says: run "make docs"'
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
