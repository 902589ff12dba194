"""
Signs in a text that it is not what its author saw: letters decoded wrongly, lost, or there to deceive.

Each is a hint for people and no reason to refuse a row. Which script a text is written in is told as well.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Final

WORDS: Final = {
    "mojibake": "hold text that looks like UTF-8 read as Windows-1252 (as “Ã©” where “é” was meant)",
    "replacement": "hold U+FFFD, which stands where a letter was lost",
    "control": "hold control characters",
    "direction": "hold characters that turn the direction of a line, which can hide what is written",
    "invisible": "hold letters that nobody sees (zero width, or tags)",
    "mixed_scripts": "mix scripts within a word (as a Cyrillic “а” in a Latin one)",
}
"""What can be odd, and how it is said of rows."""

_MARKS: Final = {
    # Only what is all but certain: a capital Ã before a quotation mark is Portuguese.
    "mojibake": re.compile(
        "Ã[\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]|Â[\u0080-\u00bf]|â€[\u0080-\u009fœ™˜“”•–—¦\u009d]|ðŸ|ï»¿|"
        "(?:[ÐÑ][\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]){2}"
    ),
    "replacement": re.compile("�"),
    "control": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "direction": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "invisible": re.compile("[\u200b\u2060\ufeff\U000e0000-\U000e007f]"),
    "mixed_scripts": re.compile("[A-Za-z][\u0370-\u052f]|[\u0370-\u052f][A-Za-z]"),
}
_SUSPICIOUS: Final = re.compile(
    "[ÃÂâðïÐÑ�\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u0370-\u052f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff"
    "\U000e0000-\U000e007f]"
)
"""All of those have one of these letters: most texts are done with one look."""
_ASCII_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SAMPLED: Final = 200  # characters of a text
_LETTERS: Final = 2000  # letters in all, whose script is looked up


def oddities(text: str) -> list[str]:
    """Which of `WORDS` this text shows."""
    if text.isascii():
        return ["control"] if _ASCII_CONTROL.search(text) else []
    if not _SUSPICIOUS.search(text):
        return []
    return [name for name, mark in _MARKS.items() if mark.search(text)]


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """The scripts that letters of these texts are written in, with their shares, the most frequent first."""
    counted: Counter[str] = Counter()
    for text in texts:
        for letter in text[:_SAMPLED]:
            if letter.isalpha():
                name = "LATIN" if letter.isascii() else unicodedata.name(letter, "OTHER").partition(" ")[0]
                counted[_TOGETHER.get(name, name).capitalize()] += 1
        if counted.total() > _LETTERS:
            break
    total = counted.total()
    return {name: round(count / total, 3) for name, count in counted.most_common(6)}


_TOGETHER: Final = {"CJK": "HAN", "MICRO": "GREEK", "FEMININE": "LATIN", "MASCULINE": "LATIN"}
