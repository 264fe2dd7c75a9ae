import pytest
import torch

from engine.model_runner.sampler import (
    Draw,
    Penalties,
    Truncation,
    draw_by_weight,
    logprobs_of,
    mask_by_bits,
    penalize,
    sample,
    truncate,
    uniforms,
)


def logits_of(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def cut(scaled: torch.Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    rows = scaled.shape[0]
    truncation = Truncation(
        rows=torch.arange(rows),
        top_k=torch.full((rows,), top_k),
        top_p=torch.full((rows,), top_p),
        min_p=torch.full((rows,), min_p),
        is_short=top_k > 0,
    )
    out = scaled.clone()
    truncate(out, truncation)
    return out


def reference_kept(scaled: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Tokens kept by top-k, then the smallest set that reaches top-p, then min-p; with plain loops."""
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    order = order[: top_k or len(order)]
    weights = [float(torch.tensor(scaled[token], dtype=torch.float64).exp()) for token in order]
    total = sum(weights)
    kept, reached = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if reached >= top_p:
            break
        kept.append((token, weight))
        reached += weight / total
    return {token for token, weight in kept if weight >= min_p * weights[0]}


@pytest.mark.parametrize("top_k", [0, 1, 5, 60])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.7, 1.0])
def test_truncation_keeps_what_plain_loops_keep(top_k: int, top_p: float, min_p: float) -> None:
    scaled = logits_of(4, 50)
    kept = cut(scaled, top_k=top_k, top_p=top_p, min_p=min_p)
    for row in range(4):
        expected = reference_kept(scaled[row].tolist(), top_k, top_p, min_p)
        assert set(kept[row].isfinite().nonzero().flatten().tolist()) == expected
    assert torch.equal(kept[kept.isfinite()], scaled[kept.isfinite()])


def test_both_ways_to_find_the_largest_agree() -> None:
    scaled = logits_of(3, 3000)
    rows = torch.arange(3)
    limits = (torch.tensor([7, 40, 900]), torch.tensor([0.9, 1.0, 0.5]), torch.tensor([0.0, 0.1, 0.0]))
    short, long = scaled.clone(), scaled.clone()
    truncate(short, Truncation(rows, *limits, is_short=True))
    truncate(long, Truncation(rows, *limits, is_short=False))
    assert torch.equal(short, long)


def test_uniforms_are_uniform_and_keyed_by_seed_and_position() -> None:
    seeds, positions = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    drawn = uniforms(seeds.flatten(), positions.flatten())
    assert drawn.unique().numel() == drawn.numel()
    assert 0 <= float(drawn.min()) < float(drawn.max()) < 1
    counts = torch.histc(drawn, bins=20, min=0, max=1)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 44  # 19 degrees of freedom, p = 0.001
    grid = drawn.view(200, 200)
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02


def test_the_largest_seed_draws_too() -> None:
    drawn = uniforms(torch.tensor([2**63 - 1, 2**63 - 2]), torch.tensor([5, 5]))
    assert drawn[0] != drawn[1]


def test_samples_follow_the_distribution() -> None:
    logits = logits_of(1, 12).expand(20_000, -1)
    temperature = 1.3
    draw = Draw(torch.full((20_000,), temperature), torch.full((20_000,), 3), torch.arange(20_000))
    counts = torch.bincount(sample(logits, draw), minlength=12).double()
    expected = torch.softmax(logits[0].double() / temperature, dim=0) * 20_000
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-3])
def test_no_temperature_is_too_low_for_the_likeliest_token(temperature: float) -> None:
    logits = torch.full((1, 1000), -40.0)
    logits[0, 7] = 30.0
    draw = Draw(torch.tensor([temperature]), torch.tensor([5]), torch.tensor([9]))
    assert sample(logits, draw).tolist() == [7]


def test_a_large_vocabulary_is_drawn_from_evenly_and_never_where_the_weight_is_zero() -> None:
    vocab, rows = 1500, 4000
    weights = torch.zeros(1, vocab)
    heavy = [0, 1, 511, 512, 700, 1024, 1498]
    weights[0, heavy] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    fractions = torch.arange(rows, dtype=torch.float64) / rows
    counts = torch.bincount(draw_by_weight(weights.expand(rows, -1), fractions), minlength=vocab)
    assert counts.nonzero().flatten().tolist() == heavy
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) / 28 * rows
    assert (counts[heavy] - expected).abs().max() <= 1


@pytest.mark.parametrize("vocab", [40, 512, 1100])
def test_a_row_of_nan_leaves_the_others_alone(vocab: int) -> None:
    logits = logits_of(2, vocab)
    draw = Draw(torch.ones(2), torch.tensor([1, 2]), torch.tensor([3, 4]))
    expected = sample(logits, draw)[1]
    logits[0] = torch.nan
    found = sample(logits, draw)
    assert found[1] == expected
    assert 0 <= found[0] < vocab


def test_a_row_samples_the_same_whatever_is_beside_it() -> None:
    logits = logits_of(16, 500)
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0] * 4)
    seeds, positions = torch.arange(16) * 77, torch.arange(16) * 3
    top_k = torch.tensor([5, 20, 100, 400] * 4)
    top_p = torch.tensor([0.9, 0.8, 0.5, 0.99] * 4)
    min_p = torch.zeros(16)

    def truncation(rows: list[int], own: list[int]) -> Truncation:
        return Truncation(torch.tensor(rows), top_k[own], top_p[own], min_p[own], is_short=True)

    together = sample(logits, Draw(temperature, seeds, positions, (truncation([1, 2, 6], [1, 2, 6]),)))
    for row in range(16):
        truncations = (truncation([0], [row]),) if row in (1, 2, 6) else ()
        own = slice(row, row + 1)
        alone = sample(logits[own], Draw(temperature[own], seeds[own], positions[own], truncations))
        assert alone.item() == together[row].item()
    assert torch.equal(together[::4], logits[::4].argmax(dim=-1))


def test_penalties_follow_their_formulas() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.5]])
    penalties = Penalties(
        rows=torch.tensor([1]),
        output_counts=torch.tensor([[3, 0, 1, 0]]),
        seen=torch.tensor([[True, True, True, False]]),
        presence=torch.tensor([0.25]),
        frequency=torch.tensor([0.5]),
        repetition=torch.tensor([2.0]),
    )
    penalize(logits, penalties)
    assert logits[0].tolist() == [2.0, -2.0, 1.0, 0.5]
    assert logits[1].tolist() == [1.0 - 1.5 - 0.25, -4.0, 0.5 - 0.5 - 0.25, 0.5]


def test_masks_keep_the_tokens_whose_bit_is_set() -> None:
    logits = torch.zeros(2, 40)
    bits = torch.tensor([[-(2**31) | 0b101, 0b10]], dtype=torch.int32)
    mask_by_bits(logits, torch.tensor([1]), bits)
    assert logits[0].isfinite().all()
    assert logits[1].isfinite().nonzero().flatten().tolist() == [0, 2, 31, 33]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = logits_of(3, 20)
    found = logprobs_of(logits.bfloat16(), torch.tensor([0, 7, 19]), 4)
    raw = torch.log_softmax(logits.bfloat16().float(), dim=-1)
    for row, token in enumerate((0, 7, 19)):
        assert found.logprob[row] == raw[row, token]
        assert found.rank[row] == 1 + sum(bool(value > raw[row, token]) for value in raw[row])
        assert found.top_ids[row].tolist() == raw[row].topk(4).indices.tolist()
        assert found.top_logprobs[row].tolist() == raw[row].topk(4).values.tolist()
