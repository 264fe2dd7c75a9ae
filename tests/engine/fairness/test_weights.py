import pytest

from engine.fairness.weights import NICE_0_LOAD, nice_load, virtual, weight_load


def test_a_nice_step_is_about_a_quarter() -> None:
    assert nice_load(0) == NICE_0_LOAD
    for nice in range(-20, 19):
        assert 1.17 <= nice_load(nice) / nice_load(nice + 1) <= 1.34
    assert (nice_load(-20), nice_load(19)) == (88761, 15)


@pytest.mark.parametrize("nice", [-21, 20])
def test_nice_out_of_range(nice: int) -> None:
    with pytest.raises(ValueError, match=str(nice)):
        nice_load(nice)


def test_weights_become_loads() -> None:
    assert weight_load(1.0) == NICE_0_LOAD
    assert weight_load(1e-9) == 1


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_weights(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        weight_load(weight)


def test_no_service_is_free() -> None:
    assert virtual(1, 88761) == 1
    assert virtual(1000, NICE_0_LOAD) == 1000
    assert virtual(1000, 2 * NICE_0_LOAD) == 500
    assert virtual(0, 15) == 0
