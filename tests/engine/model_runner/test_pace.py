from engine.messages import Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.pace import LaunchPace

MS = 1_000_000
ROW = Row(0, Sampling(max_tokens=1), num_prompt=1, page_tables=[[1]])
DECODE = [StepRow(ROW, 5, 1, None, sample=True)]
PREFILL = [*DECODE, StepRow(ROW, 0, 100, [0] * 100, sample=True)]


def learned(*, decode_ns: int = 8 * MS, prefill_ns: int = 18 * MS) -> LaunchPace:
    pace = LaunchPace()
    for rows, step_ns in ((DECODE, decode_ns), (PREFILL, prefill_ns)):
        pace.observe(rows, step_ns, 0, was_ahead=False)
    return pace


def test_before_it_knows_steps_it_launches_at_once() -> None:
    pace = LaunchPace()
    assert pace.launch_at_ns(1000, DECODE, next_prefills=False) == 1000
    pace.observe(DECODE, 8 * MS, 0, was_ahead=False)
    assert pace.launch_at_ns(1000, DECODE, next_prefills=False) > 1000
    assert pace.launch_at_ns(1000, PREFILL, next_prefills=False) == 1000


def test_a_step_is_launched_a_little_before_the_one_before_it_ends() -> None:
    pace = learned()
    assert 5 * MS < pace.launch_at_ns(0, DECODE, next_prefills=False) < 8 * MS
    assert 15 * MS < pace.launch_at_ns(0, PREFILL, next_prefills=False) < 18 * MS
    assert learned(decode_ns=MS).launch_at_ns(7, DECODE, next_prefills=False) == 7  # too short to wait


def test_idle_time_is_made_up_for_at_once_and_given_up_slowly() -> None:
    pace = learned()
    before_ns = pace.launch_at_ns(0, DECODE, next_prefills=False)
    pace.observe(DECODE, 8 * MS, MS, was_ahead=True)
    after_ns = pace.launch_at_ns(0, DECODE, next_prefills=False)
    assert after_ns == before_ns - MS
    for _ in range(300):
        pace.observe(DECODE, 8 * MS, 0, was_ahead=True)
    assert before_ns < pace.launch_at_ns(0, DECODE, next_prefills=False) < 8 * MS


def test_idle_time_between_unrelated_steps_teaches_nothing() -> None:
    pace = learned()
    before_ns = pace.launch_at_ns(0, DECODE, next_prefills=False)
    pace.observe(DECODE, 8 * MS, 900 * MS, was_ahead=False)
    assert pace.launch_at_ns(0, DECODE, next_prefills=False) == before_ns


def test_steps_with_prefill_have_a_lead_of_their_own() -> None:
    pace = learned()
    pace.observe(PREFILL, 18 * MS, 3 * MS, was_ahead=True)
    gap_ns = pace.launch_at_ns(0, DECODE, next_prefills=False) - pace.launch_at_ns(
        0, DECODE, next_prefills=True
    )
    assert gap_ns == 3 * MS
