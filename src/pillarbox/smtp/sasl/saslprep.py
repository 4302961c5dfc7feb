"""SASLprep (RFC 4013): user names and passwords that look the same become the same."""

from __future__ import annotations

_UNASSIGNED = "a character that Unicode 3.2 does not have"


def saslprep(text: str, *, stored: bool = False) -> str:
    """Return a prepared user name or password.

    stored: as what is kept, not what is compared with it: unassigned code points are then refused (RFC 3454 7).
    Raises ValueError, which does not say the text: it may be a password.
    """
    prepared = text if text.isascii() else _normalized(text)
    _refuse_prohibited(prepared, stored=stored)
    _check_directions(prepared)
    return prepared


def _normalized(text: str) -> str:
    # unicodedata's tables and these take 4 ms to import, which names in ASCII need not pay.
    import stringprep
    import unicodedata

    # RFC 4013 2.1: "non-ASCII space characters [StringPrep, C.1.2] that can be mapped to SPACE (U+0020), and the
    # "commonly mapped to nothing" characters [StringPrep, B.1] that can be mapped to nothing."
    # (U+200B is in both: it becomes a space, as in libidn and PostgreSQL.)
    spaced = (" " if stringprep.in_table_c12(c) else c for c in text)
    mapped = "".join(c for c in spaced if not stringprep.in_table_b1(c))
    # RFC 4013 2.2: "This profile specifies using Unicode normalization form KC"
    return unicodedata.ucd_3_2_0.normalize("NFKC", mapped)


def _refuse_prohibited(text: str, *, stored: bool) -> None:
    if text.isascii():
        if not text.isprintable():
            raise ValueError("SASLprep: control characters are prohibited")
        return
    import stringprep as s

    tables = (
        s.in_table_c12, s.in_table_c21_c22, s.in_table_c3, s.in_table_c4, s.in_table_c5, s.in_table_c6, s.in_table_c7,
        s.in_table_c8, s.in_table_c9,
    )  # fmt: skip
    for character in dict.fromkeys(text):  # each once: one that a client sends may come to eighteen by now
        if any(prohibits(character) for prohibits in tables):
            raise ValueError(f"SASLprep: U+{ord(character):04X} is prohibited")
        if stored and s.in_table_a1(character):
            raise ValueError(f"SASLprep: U+{ord(character):04X} is {_UNASSIGNED}")


def _check_directions(text: str) -> None:
    if text.isascii():
        return
    import stringprep

    characters = dict.fromkeys(text)
    if not any(map(stringprep.in_table_d1, characters)):
        return
    # RFC 3454 6: "If a string contains any RandALCat character, the string MUST NOT contain any LCat character." And "a
    # RandALCat character MUST be the first character of the string, and a RandALCat character MUST be the last
    # character of the string."
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    if any(map(stringprep.in_table_d2, characters)) or not ends:
        raise ValueError("SASLprep: the writing directions are mixed")
