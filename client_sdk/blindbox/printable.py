"""Strings that somebody else may have written, made fit to be shown to people."""

from __future__ import annotations

from typing import Final

MAX_SHOWN: Final = 16 * 1024


def plain(text: str) -> str:
    """
    The text in one line, not without end, and without anything that a terminal or a page would act upon.

    Control characters, and those that turn the direction of a line, are told by their numbers. A line break
    becomes a space, or it could begin a line that looks like ours.
    """
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN // 2]} … and {len(text) - MAX_SHOWN // 2} characters more"
    if text.isprintable():
        return text
    told = "".join(
        one if one.isprintable() else " " if one.isspace() else f"\\u{{{ord(one):x}}}" for one in text
    )
    return told[:MAX_SHOWN]


def plain_lines(text: str) -> str:
    """
    The same for what may have lines: line breaks and tabs stay, and all of it is told.

    Also for a piece of a text, as it comes.
    """
    return "".join(
        one if one.isprintable() or one in "\n\t" else " " if one.isspace() else f"\\u{{{ord(one):x}}}"
        for one in text
    )


def short(text: str) -> str:
    """A long value in hexadecimal by its beginning; anything else as it is."""
    return f"{text[:16]}…" if len(text) > 32 and is_hex(text) else text


def is_hex(text: str) -> bool:
    return bool(text) and set("0123456789abcdef").issuperset(text)
