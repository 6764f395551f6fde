"""Text as a terminal shows it: escaped, measured, cut."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text on one line with all control characters escaped: ``\n`` for a newline, and so on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def flatten(text: str) -> str:
    """Return a message on one line: line ends become spaces, other control characters are escaped."""
    return printable(text.replace("\n", " "))


def quote(text: str) -> str:
    """Return what a user typed in quotation marks, shortened to fit a message."""
    return repr(text if len(text) < 60 else f"{text[:57]}...")  # noqa: PLR2004


def width(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, columns: int) -> str:
    """Return the text in at most so many columns, with an ellipsis where something was left out."""
    if width(text) <= columns:
        return text
    if text.isascii():
        return text[: columns - 1] + "…"
    kept = []
    left = columns - 1
    for c in text:
        left -= width(c)
        if left < 0:
            break
        kept.append(c)
    return "".join(kept) + "…"
