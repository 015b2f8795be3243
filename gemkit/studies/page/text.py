"""Numbers and words as people read them: a true minus sign, aligned decimals, SI prefixes, breaks between words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from markupsafe import Markup, escape

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_THIN_SPACE = "\u202f"
_BREAKS = re.compile(r"(?<=[,._/])(?=[^\W\d]|\[)|(?<==)(?=[^\s,]{4})")
"""Where a word of a config may be broken; `dim=64` stays whole."""
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def fixed(value: float | None, decimals: int) -> str:
    """``0.7950``, ``−0.0012``, ``12,345``."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{decimals}f}"
    zero = not text.strip("-0.,")
    return text.lstrip("-") if zero else text.replace("-", _MINUS)


def signed(value: float | None, decimals: int) -> str:
    """``+0.0012``, ``−0.0012``, ``0.0000``."""
    text = fixed(value, decimals)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.,") else text


def percent(share: float | None) -> str:
    """``+0.26 %`` of a share of 0.0026."""
    text = signed(None if share is None else 100 * share, 2)
    return text if text == MISSING else f"{text}{_THIN_SPACE}%"


def si(value: float | None, digits: int = 3) -> str:
    """``1.23 M``: so many significant digits and a prefix."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < 1000:
        return f"{value:.{digits}g}".replace("-", _MINUS)
    # rounded first: 999,999 is 1 M, not 1000 k
    rounded = float(f"{value:.{digits}g}")
    power = min(int(math.log10(abs(rounded)) / 3 + 1e-9), len(_PREFIXES) - 1)
    return f"{rounded / 1000**power:.{digits}g}{_THIN_SPACE}{_PREFIXES[power]}".replace("-", _MINUS)


def decimals_for(widths: Iterable[float | None], least: int = 4, most: int = 6) -> int:
    """Decimals that show the smallest of some positive widths with two digits, within bounds.

    Args:
        widths: Half-widths of intervals, standard deviations; None and 0 do not count.
    """
    known = [width for width in widths if width and math.isfinite(width)]
    wanted = 1 - math.floor(math.log10(min(known))) if known else least
    return max(least, min(most, wanted))


def breakable(text: str) -> Markup:
    """A text that may go on in the next line after the signs that words of configs are full of."""
    return Markup("<wbr>").join(escape(part) for part in _BREAKS.split(text))
