"""Names from logs and file systems, fit to be shown: no terminal, page or figure takes whatever they hold."""

from __future__ import annotations

LONGEST = 60  # of one among several names in a message


def one_line(text: str) -> str:
    """A text in which line breaks, control characters and halves of surrogate pairs have become U+FFFD."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def shortened(name: str, longest: int) -> str:
    """The same in at most ``longest`` characters: the middle gives way."""
    if len(name) > longest:
        name = f"{name[: longest // 2]}…{name[len(name) - (longest - longest // 2 - 1) :]}"
    return one_line(name)


def some(names: list[str], most: int = 8) -> str:
    """The first of many names, each shortened, for a message."""
    return ", ".join(shortened(name, LONGEST) for name in names[:most])
