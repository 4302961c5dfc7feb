"""What is stored for SCRAM, and SASLprep."""

from __future__ import annotations

import dataclasses
import stringprep
from base64 import b64decode
from typing import Any

import pytest

from pillarbox import ScramKeys
from pillarbox.smtp.sasl.saslprep import saslprep

# The password "pencil" and the salt of RFC 7677 3, as PostgreSQL stores it; and those of RFC 5802 5.
SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
STORED = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)
SHA1 = "SCRAM-SHA-1$4096:QSXCR+Q6sek8bf92$6dlGYMOdZcOPutkcNY8U2g7vK9Y=:D+CSWLOshSulAsxiupA+qs2/fTE="


@pytest.mark.parametrize("stored", [STORED, SHA1])
def test_the_text_form_is_read_and_written(stored: str) -> None:
    keys = ScramKeys.parse(stored)
    assert str(keys) == stored
    assert keys.fits("pencil")
    assert not keys.fits("Pencil")
    assert not keys.fits("")


def test_keys_are_made_of_a_password() -> None:
    assert str(ScramKeys.from_password("pencil", iterations=4096, salt=SALT)) == STORED
    sha1 = ScramKeys.from_password("pencil", hash="sha1", iterations=4096, salt=b64decode("QSXCR+Q6sek8bf92"))
    assert str(sha1) == SHA1
    first, second = ScramKeys.from_password("pencil"), ScramKeys.from_password("pencil")
    assert first.salt != second.salt
    assert first.iterations >= 4096
    assert first.fits("pencil")


def test_passwords_that_look_the_same_are_the_same() -> None:
    assert ScramKeys.from_password("I\u00adX", iterations=1, salt=SALT) == ScramKeys.from_password(
        "\u2168", iterations=1, salt=SALT
    )


@pytest.mark.parametrize("password", ["", "a\nb", "\u0627" + "1", "\U0001f511", "\u00ad"])
def test_a_password_that_cannot_be_one(password: str) -> None:
    with pytest.raises(ValueError, match=r"SASLprep|empty") as raised:
        ScramKeys.from_password(password)
    assert not password.strip() or password not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "", "pencil", STORED + " ", STORED[:-1], STORED.replace("SHA-256", "SHA-1"), STORED.replace("4096", "0"),
        STORED.replace("4096", "9999999999"), STORED.replace("W22Z", "W2=Z"), STORED.replace("SHA-256", "SHA-512"),
        "SCRAM-SHA-256$4096:$$", STORED.replace("4096", "٤٠٩٦"),
    ],
)  # fmt: skip
def test_a_text_that_holds_no_keys_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="ScramKeys") as raised:
        ScramKeys.parse(text)
    assert "WG5d8oPm3" not in str(raised.value)


@pytest.mark.parametrize(
    "change", [{"hash": "md5"}, {"iterations": 0}, {"iterations": 2**31}, {"salt": b""}, {"stored_key": b"x"}]
)
def test_what_cannot_be_keys(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ScramKeys"):
        dataclasses.replace(ScramKeys.parse(STORED), **change)
    if "stored_key" not in change and "salt" not in change:
        with pytest.raises(ValueError, match="ScramKeys"):
            ScramKeys.from_password("pencil", **change)


@pytest.mark.promises(
    "Replies and logs", "Passwords and tokens, and what they could be guessed from, reach no log at any level."
)
def test_keys_stand_in_no_repr() -> None:
    assert repr(ScramKeys.parse(STORED)) == "ScramKeys(hash='sha256', iterations=4096)"


def test_keys_of_nobody_are_always_the_same_and_fit_nothing() -> None:
    nobody = ScramKeys.of_nobody("ann")
    assert nobody == ScramKeys.of_nobody("ann")
    assert nobody.salt != ScramKeys.of_nobody("bob").salt
    assert nobody.salt != ScramKeys.of_nobody("ann", hash="sha1").salt
    usual = ScramKeys.from_password("x")
    assert (len(nobody.salt), nobody.iterations) == (len(usual.salt), usual.iterations)
    assert ScramKeys.of_nobody("ann", secret=b"a") == ScramKeys.of_nobody("ann", secret=b"a") != nobody
    assert ScramKeys.of_nobody("ann", secret=b"a") != ScramKeys.of_nobody("ann", secret=b"b")
    assert ScramKeys.of_nobody("ann", iterations=5000).iterations == 5000
    assert not ScramKeys.of_nobody("ann", iterations=1).fits("pencil")


# --- SASLprep


@pytest.mark.parametrize(
    ("given", "prepared"),
    [
        ("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"),  # RFC 4013 3
        ("a\u00a0b", "a b"), ("a\u200bb", "a b"), ("\u00ad", ""), ("\u0627\u0628", "\u0627\u0628"),
        ("\u06271\u0628", "\u06271\u0628"), ("", ""), ("gru\u0308n", "gr\u00fcn"),
    ],
)  # fmt: skip
def test_what_is_mapped(given: str, prepared: str) -> None:
    assert saslprep(given) == prepared


@pytest.mark.parametrize(
    "given",
    ["\u0007", "\u06271", "\u0627a\u0628", "a\u0080", "\ue000", "\ufffe", "\ud800\u00e4", "\ufffd", "\u2ff0", "\u200e",
     "\U000e0001"],
)  # fmt: skip
def test_what_is_prohibited(given: str) -> None:
    with pytest.raises(ValueError, match="SASLprep"):
        saslprep(given)


def test_what_unicode_did_not_have_is_for_names_only() -> None:
    assert saslprep("\U0001f511") == "\U0001f511"
    with pytest.raises(ValueError, match=r"U\+1F511"):
        saslprep("\U0001f511", stored=True)


def test_a_character_that_comes_again_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 of this ligature, which 12 KiB of AUTH may hold, are 54,000 characters when they are prepared."""
    looked_at: list[str] = []
    monkeypatch.setattr(stringprep, "in_table_c3", looked_at.append)
    ligature = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}"
    prepared = saslprep(ligature * 3000)
    assert len(prepared) == 54_000
    assert len(looked_at) == len(set(prepared))
