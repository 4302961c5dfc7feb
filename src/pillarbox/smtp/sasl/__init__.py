"""Authentication mechanisms (RFC 4422), one file each: an exchange of challenges that ends with a credential."""

from __future__ import annotations

from pillarbox.smtp.sasl import cram_md5, login, plain, xoauth2
from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism

MECHANISMS: dict[str, Mechanism] = {
    "PLAIN": plain.authenticate,
    "LOGIN": login.authenticate,
    "CRAM-MD5": cram_md5.authenticate,
    "XOAUTH2": xoauth2.authenticate,
}

__all__ = ["MECHANISMS", "AuthRequest", "Exchange", "InvalidCredential", "Mechanism"]
