"""How long a runner may say nothing."""

from engine.silence import LOOK_S, SILENT_S, Silence

NUM_LOOKS = round(SILENT_S / LOOK_S)


def looks_until_too_long(silence: Silence, num_heard: int) -> int:
    for looks in range(1, 2 * NUM_LOOKS):
        if silence.is_too_long("cpu", num_heard, is_busy=True):
            return looks
    raise AssertionError("it may be silent for ever")


def test_a_runner_with_work_is_silent_for_too_long_after_the_limit() -> None:
    silence = Silence()
    assert not silence.is_too_long("cpu", 5, is_busy=True)
    assert looks_until_too_long(silence, 5) == NUM_LOOKS


def test_a_message_and_a_time_without_work_end_a_silence() -> None:
    silence = Silence()
    for _ in range(NUM_LOOKS):
        assert not silence.is_too_long("cpu", 5, is_busy=True)
    assert not silence.is_too_long("cpu", 6, is_busy=True)
    for _ in range(NUM_LOOKS - 1):
        assert not silence.is_too_long("cpu", 6, is_busy=True)
    assert not silence.is_too_long("cpu", 6, is_busy=False)
    assert looks_until_too_long(silence, 6) == NUM_LOOKS


def test_each_runner_is_listened_to_for_itself() -> None:
    silence = Silence()
    for number in range(2 * NUM_LOOKS):
        assert not silence.is_too_long("cpu:0", number, is_busy=True)
        silence.is_too_long("cpu:1", 0, is_busy=True)
    assert silence.is_too_long("cpu:1", 0, is_busy=True)
