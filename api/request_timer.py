"""What one request adds to the metrics."""

import time
from collections.abc import Iterable, Sequence

from api.metrics import Metrics


class RequestTimer:
    """Measures one request, from its arrival by `time.monotonic`."""

    def __init__(self, metrics: Metrics, model: str, arrived_s: float) -> None:
        self._of_model = metrics.of_model(model)
        self._start_s = arrived_s
        self._first_s: float | None = None
        self._last_s = arrived_s

    def admitted(self, prompt_tokens: int, num_choices: int) -> None:
        """The engine took the request."""
        self._of_model.prompt_tokens.inc(prompt_tokens)
        self._of_model.request_prompt_tokens.observe(prompt_tokens)
        self._of_model.num_choices.observe(num_choices)

    def tokens(self, count: int) -> None:
        """Tokens have come, now."""
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            self._of_model.first_token_s.observe(now_s - self._start_s)
        else:
            self._of_model.gap_s.observe(now_s - self._last_s)
        self._last_s = now_s
        self._of_model.generation_tokens.inc(count)

    def finished(self, reasons: Iterable[str], tokens_by_choice: Sequence[int]) -> None:
        """The answer is over."""
        of_model = self._of_model
        of_model.request_s.observe(time.monotonic() - self._start_s)
        longest = max(tokens_by_choice)
        of_model.request_generation_tokens.observe(sum(tokens_by_choice))
        of_model.longest_choice_tokens.observe(longest)
        if self._first_s is not None:
            decode_s = self._last_s - self._first_s
            of_model.decode_s.observe(decode_s)
            if longest > 1:  # choices grow side by side: the longest one took all of that time
                of_model.per_token_s.observe(decode_s / (longest - 1))
        for reason in reasons:
            of_model.finished(reason).inc()
