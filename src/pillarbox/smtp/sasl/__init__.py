"""Authentication mechanisms (RFC 4422), one file each: an exchange of challenges that ends with a credential."""

from __future__ import annotations

from pillarbox.smtp.sasl.anonymous import Anonymous
from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism
from pillarbox.smtp.sasl.cram_md5 import CramMD5
from pillarbox.smtp.sasl.external import External
from pillarbox.smtp.sasl.keys import ScramKeys
from pillarbox.smtp.sasl.login import Login
from pillarbox.smtp.sasl.oauthbearer import OAuthBearer
from pillarbox.smtp.sasl.plain import Plain
from pillarbox.smtp.sasl.scram import Scram
from pillarbox.smtp.sasl.xoauth2 import XOAuth2

MECHANISMS: dict[str, Mechanism] = {
    mechanism.name: mechanism
    for mechanism in (
        Plain(),
        Login(),
        CramMD5(),
        XOAuth2(),
        OAuthBearer(),
        Scram("SCRAM-SHA-1"),
        Scram("SCRAM-SHA-1-PLUS"),
        Scram("SCRAM-SHA-256"),
        Scram("SCRAM-SHA-256-PLUS"),
        External(),
        Anonymous(),
    )
}

__all__ = ["MECHANISMS", "AuthRequest", "Exchange", "InvalidCredential", "Mechanism", "ScramKeys"]
