"""Stop strings in a stream of text, across any cuts."""

from collections.abc import Sequence


class _Pattern:
    """Knuth, Morris and Pratt's automaton of one stop string."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # characters of `text` that the stream's end matches: the longest such prefix
        self._fallback = [0] * (len(text) + 1)  # [k]: longest proper border of the first k characters
        length = 0
        for index in range(1, len(text)):
            while length and text[index] != text[length]:
                length = self._fallback[length]
            length += text[index] == text[length]
            self._fallback[index + 1] = length

    def feed(self, char: str) -> bool:
        """Advance by a character; True when the whole stop string has just been seen."""
        matched = self.matched
        while matched and self.text[matched] != char:
            matched = self._fallback[matched]
        matched += self.text[matched] == char
        self.matched = matched
        return matched == len(self.text)


class StopStrings:
    """Lets text through until a stop string appears; holds back what may be the beginning of one.

    The stop string that is complete first ends the text; of several that end with the same character, the
    longest.
    """

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._include = include
        self._held = ""
        self.found: str | None = None

    @property
    def is_active(self) -> bool:
        """There are stop strings at all."""
        return bool(self._patterns)

    def feed(self, text: str) -> str:
        """The text that can be shown now. Nothing may be fed after `found` is set."""
        assert self.found is None
        if not self._patterns:
            return text
        text = self._held + text
        for index in range(len(self._held), len(text)):
            complete = [pattern.text for pattern in self._patterns if pattern.feed(text[index])]
            if complete:
                self.found = max(complete, key=len)
                self._held = ""
                end = index + 1
                return text[:end] if self._include else text[: end - len(self.found)]
        held = max(pattern.matched for pattern in self._patterns)
        shown = len(text) - held
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held
