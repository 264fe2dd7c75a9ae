"""What prefill costs, and what of it is hidden."""

import pytest

from engine.model_runner.prefill_cost import fit_prefill


def added_ns(num_tokens: int, token_ns: float, overlap_ns: float) -> float:
    alone_ns = num_tokens * token_ns
    return alone_ns - overlap_ns * alone_ns / (overlap_ns + alone_ns)


@pytest.mark.parametrize(("token_ns", "overlap_ns"), [(23_600.0, 3e6), (500.0, 1e4), (23_600.0, 1.0)])
def test_what_the_model_says_is_found_again(token_ns: float, overlap_ns: float) -> None:
    chunks = [(n, added_ns(n, token_ns, overlap_ns)) for n in (1023, 256)]
    assert fit_prefill(*chunks) == pytest.approx((token_ns, overlap_ns), rel=1e-3)


@pytest.mark.parametrize(
    ("many", "few"),
    [
        ((1000, 2e7), (250, 6e6)),  # the small chunk cost more by the token: noise
        ((1000, 2e7), (250, 0.0)),
        ((1000, 2e7), (0, 0.0)),
        ((1000, 2e7), (1000, 2e7)),
    ],
)
def test_where_nothing_is_hidden_the_larger_chunk_says_it_all(
    many: tuple[int, float], few: tuple[int, float]
) -> None:
    assert fit_prefill(many, few) == (2e4, 0.0)


def test_a_token_is_never_free() -> None:
    assert fit_prefill((1000, -5.0), (250, 3.0)) == (1.0, 0.0)
    assert fit_prefill((0, 0.0), (0, 0.0)) == (1.0, 0.0)
