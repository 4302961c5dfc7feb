"""Signatures after Standard Webhooks (https://www.standardwebhooks.com): HMAC-SHA256, one for each secret.

A body is signed in blocks, so that its size does not matter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["secret_key", "signatures"]

_PREFIX = "whsec_"


def secret_key(text: str) -> bytes:
    """Return the key that a secret ``whsec_…`` holds; raise ConfigurationError, which does not show it."""
    # The specification: "Random. At least 24 bytes (192 bits, 512 maximum)", "base64 encoded, prefixed with `whsec_`".
    encoded = text.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if encoded == text or not 24 <= len(key) <= 64:
        raise ConfigurationError(
            "a secret is written whsec_ and 24 to 64 random octets in base64; to make one:"
            ' echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def signatures(keys: Sequence[bytes], identifier: str, timestamp: int, payload: Iterable[bytes]) -> list[str]:
    """Return the signatures of a payload, in the order of the keys."""
    # The specification: "The content to be signed is therefore: `{msg_id}.{timestamp}.{payload}`."
    begun = f"{identifier}.{timestamp}.".encode()
    signing = [hmac.new(key, begun, hashlib.sha256) for key in keys]
    for block in payload:
        for each in signing:
            each.update(block)
    return [f"v1,{base64.b64encode(each.digest()).decode()}" for each in signing]
