"""Write docs/replies.md from the table of replies; ``make docs`` runs this, a test keeps the page true."""

from __future__ import annotations

from pathlib import Path

from pillarbox.smtp.reply import TABLE, Entry

PAGE = Path(__file__).with_name("replies.md")

_HEAD = """\
<!-- Made by docs/make_replies.py from src/pillarbox/smtp/reply.py: change the table there, then run "make docs". -->

# Replies

Everything that the server says by itself, by code. The enhanced code (RFC 3463) is sent with
`hide_enhanced_status_codes=False` only, on every line of the reply. Where a text has a part that varies, an example or
`…` stands for it.

A handler says what it likes with [`Reject`](handlers.md); what it leaves out is taken from the line of its hook. An
enhanced code that it leaves out, where its reply code is not the hook's, is `4.0.0` or `5.0.0`. A 421 closes the
connection.

| code | enhanced | text | when |
|---|---|---|---|
"""

_TAIL = """
Three replies have a form of their own and no enhanced code (RFC 2034 4): the greeting (220, `banner`), which also
answers XCLIENT; the reply to HELO, EHLO and LHLO (250, `helo_response` and the keywords); the challenges of AUTH (334).
"""


def page() -> str:
    """Return the whole page."""
    # Refusals of a kind stand together; what is said of a success comes first.
    entries = sorted(TABLE, key=lambda entry: (entry.reply.code, entry.reply.enhanced))
    return _HEAD + "".join(_row(entry) for entry in entries) + _TAIL


def _row(entry: Entry) -> str:
    reply = entry.reply
    text = reply.text or reply.plain.decode().strip()[4:]
    cells = (str(reply.code), reply.enhanced, f"`{text}`", entry.when)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
