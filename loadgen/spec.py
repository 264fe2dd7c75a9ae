"""Small values written on the command line: numbers, ranges, lists of names with values."""

import math


class SpecError(ValueError):
    """An option's value is not in the form it must have. The message is one line."""


def whole(text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise SpecError(f"must be a whole number, at least {least}; not {text!r}")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise SpecError(f"must be a number above 0, not {text!r}")
    return value


def whole_range(text: str, separator: str, least: int = 0) -> tuple[int, int]:
    """'A<separator>B' with A <= B; 'A' alone stands for A to A."""
    low_text, _, high_text = text.partition(separator)
    low = whole(low_text, least)
    high = whole(high_text, least) if high_text else low
    if high < low:
        raise SpecError(f"must be a range from low to high, not {text!r}")
    return low, high


def row_slice(text: str) -> tuple[int, int | None]:
    """'A:B' as Python slices rows: from A up to and without B. Either may be left out."""
    start, colon, stop = text.partition(":")
    if not colon:
        raise SpecError(f"must be FROM:TO, not {text!r}")
    first, end = (whole(start) if start else 0), (whole(stop) if stop else None)
    if end is not None and end <= first:
        raise SpecError(f"holds no row: {text!r}")
    return first, end


def named_numbers(text: str) -> dict[str, float]:
    """'a=1,b=2.5' with numbers above 0."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name and equals):
            raise SpecError(f"must be NAME=NUMBER, with commas between, not {text!r}")
        if name in values:
            raise SpecError(f"{name} is given twice")
        values[name] = positive(value)
    return values
