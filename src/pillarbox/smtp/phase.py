"""What a session has done, as plain numbers: those of ``Phase``, whose own operations would cost every command."""

from __future__ import annotations

from pillarbox.extension import Phase

HELLO, TLS, AUTH, MAIL, RCPT, CHUNKS, DOOMED = map(int, Phase)
TRANSACTION = MAIL | RCPT | CHUNKS
