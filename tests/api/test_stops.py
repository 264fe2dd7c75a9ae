"""Stop strings: the cuts of the stream do not matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.stops import StopStrings

SMALL_TEXT = st.text("ab", max_size=20)


def feed_all(stops: list[str], pieces: list[str], include: bool) -> tuple[str, str | None]:
    matcher = StopStrings(stops, include=include)
    shown = ""
    for piece in pieces:
        shown += matcher.feed(piece)
        if matcher.found is not None:
            return shown, matcher.found
    return shown + matcher.flush(), None


def expected(stops: list[str], text: str, include: bool) -> tuple[str, str | None]:
    """By brute force: the first end of a stop string, the longest that ends there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    pieces=st.lists(SMALL_TEXT, max_size=8),
    include=st.booleans(),
)
def test_equals_a_search_in_the_whole_text(stops: list[str], pieces: list[str], include: bool) -> None:
    assert feed_all(stops, pieces, include) == expected(stops, "".join(pieces), include)


@given(stop=st.text("ab", min_size=1, max_size=5), pieces=st.lists(SMALL_TEXT, max_size=8))
def test_holds_back_no_more_than_needed(stop: str, pieces: list[str]) -> None:
    matcher = StopStrings([stop], include=False)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += matcher.feed(piece)
        if matcher.found:
            break
        held = text[len(shown) :]
        assert stop.startswith(held)
        assert not any(stop.startswith(text[start:]) for start in range(len(shown)))


@pytest.mark.parametrize(("include", "shown"), [(False, "one "), (True, "one two")])
def test_across_pieces(include: bool, shown: str) -> None:
    assert feed_all(["two"], ["one t", "w", "o three"], include) == (shown, "two")
