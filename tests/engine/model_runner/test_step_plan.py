"""The layout of mixed steps; that a device computes them rightly is the executors' tests' to show."""

from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.step_plan import MAX_GRAPH_CHUNKS, fitting, mixed_shapes, plan_step

SHAPES = mixed_shapes(32, 512)
PADDING_SLOT = 32
counts = st.lists(st.one_of(st.just(1), st.integers(2, 90)), min_size=1, max_size=32)


def step_rows(counts: list[int]) -> list[StepRow]:
    sampling = Sampling(max_tokens=4)
    return [
        StepRow(Row(slot, sampling, 100, [[slot]]), 10 * slot, count, list(range(1, count + 1)), sample=True)
        for slot, count in enumerate(counts)
    ]


def test_shapes_stay_within_the_limits() -> None:
    assert max(shape.tokens for shape in SHAPES) <= 512
    assert max(shape.decoding for shape in SHAPES) == 32
    assert mixed_shapes(256, 64) == ()


@given(counts)
def test_the_shape_that_fits_is_the_smallest(counts: list[int]) -> None:
    shape = fitting(SHAPES, step_rows(counts))
    decoding = counts.count(1)
    filling = sum(counts) - decoding
    holding = [s for s in SHAPES if s.decoding >= decoding and s.filling >= filling]
    if len(counts) - decoding > MAX_GRAPH_CHUNKS or not holding:
        assert shape is None
    else:
        assert shape is not None
        assert shape.decoding == min(s.decoding for s in holding)
        assert shape.filling == min(s.filling for s in holding if s.decoding == shape.decoding)


@given(counts)
def test_padding_changes_no_row(counts: list[int]) -> None:
    rows = step_rows(counts)
    shape = fitting(SHAPES, rows)
    if shape is None:
        return
    plain, padded = plan_step(rows, [], PADDING_SLOT), plan_step(rows, [], PADDING_SLOT, shape)
    assert len(padded.positions) == len(padded.ids) == shape.tokens
    assert len(padded.slots) == padded.num_decoding == shape.decoding
    assert len(padded.keep) == shape.logits
    assert set(padded.slots[counts.count(1) :]) <= {PADDING_SLOT}
    assert padded.order == plain.order
    assert padded.sampled == plain.sampled
    for place, i in enumerate(padded.sampled):
        kept, alone = padded.keep[place], plain.keep[place]
        assert padded.positions[kept] == plain.positions[alone] == rows[i].start + rows[i].count - 1
        assert padded.ids[kept] == plain.ids[alone]
    for first, count, start, _ in padded.chunks:
        assert first >= shape.decoding
        assert list(padded.positions[first : first + count]) == list(range(start, start + count))
