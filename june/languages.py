"""The languages that june can be told of, and how their codes are read."""

import re

_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr
ht hu hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc
pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue
zh
"""

KNOWN = frozenset(_CODES.split())
"""ISO 639-1 codes, and ISO 639-3 where there is none: those that Whisper hears, in its own spelling."""

OTHER_SPELLINGS = {"cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "jv": "jw", "mo": "ro", "nb": "no"}
"""Codes for the same language, by what `KNOWN` calls it."""

TAG = re.compile(r"([a-z]{2,3})([-_][a-z0-9]{1,8})*", re.IGNORECASE)


def language_code(tag: str) -> str:
    """Return the language of a BCP 47 tag, without region and script: "de" for "de-DE", "zh" for "zh-Hant".

    Raises:
        ValueError: the tag does not begin with the code of a language in `KNOWN`.
    """
    found = TAG.fullmatch(tag)
    code = found[1].lower() if found else ""
    code = OTHER_SPELLINGS.get(code, code)
    if code not in KNOWN:
        raise ValueError("expected a language code such as de or pt-BR")
    return code
