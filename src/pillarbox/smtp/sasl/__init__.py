"""Authentication mechanisms (RFC 4422), one file each: an exchange of challenges that ends with a credential."""

from __future__ import annotations

from functools import lru_cache

from pillarbox.smtp.sasl.anonymous import Anonymous
from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism
from pillarbox.smtp.sasl.cram_md5 import CramMD5
from pillarbox.smtp.sasl.external import External
from pillarbox.smtp.sasl.keys import ScramKeys
from pillarbox.smtp.sasl.login import Login
from pillarbox.smtp.sasl.oauthbearer import OAuthBearer
from pillarbox.smtp.sasl.plain import Plain
from pillarbox.smtp.sasl.xoauth2 import XOAuth2

_SIMPLE = {m.name: m for m in (Plain, Login, CramMD5, XOAuth2, OAuthBearer, External, Anonymous)}


@lru_cache
def built_in(name: str) -> Mechanism:
    """Return a mechanism of the server's own; one object does for all listeners."""
    if name in _SIMPLE:
        return _SIMPLE[name]()
    from pillarbox.smtp.sasl.scram import Scram  # 2 ms, for those who use it

    return Scram(name)


__all__ = ["AuthRequest", "Exchange", "InvalidCredential", "Mechanism", "ScramKeys", "built_in"]
