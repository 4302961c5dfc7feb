"""What a session has done, as bits: a command needs some and excludes others."""

HELLO, TLS, AUTH, MAIL, RCPT = 1, 2, 4, 8, 16
DOOMED = 32  # the next command is refused, whatever it is
TRANSACTION = MAIL | RCPT
