import pytest

from engine.fairness import POLICIES, make_policy


def test_every_name_makes_a_policy() -> None:
    assert [make_policy(name).rotates for name in POLICIES] == [True, True, False, False]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'lottery'.*cfs, eevdf, fcfs, vtc"):
        make_policy("lottery")
