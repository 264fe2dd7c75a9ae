"""Where mirrors go first."""

import random
from itertools import chain

from engine.memory.placement import HOST, Placement

HOME, OTHER_HOME, FAST, SLOW, ALSO_FAST, IN_DRAM = 1, 2, 10, 11, 12, 20


def placement(links: dict[tuple[str, str], float]) -> Placement:
    """A device "a" at home, lenders "b", "c" and "d", and the host."""
    made = Placement(links)
    made.add_home(HOME, "a")
    made.add_tier(IN_DRAM, None)
    for pool, device in ((SLOW, "c"), (FAST, "b"), (ALSO_FAST, "d")):
        made.add_tier(pool, device)
    return made


def test_better_links_come_first_and_equal_ones_stand_together() -> None:
    links = {("a", "b"): 4e11, ("d", "a"): 4e11, ("a", "c"): 2e11}
    assert placement(links).classes(HOME) == [[FAST, ALSO_FAST], [SLOW], [IN_DRAM]]


def test_a_link_that_nobody_described_is_better_than_the_host() -> None:
    assert placement({}).classes(HOME) == [[SLOW, FAST, ALSO_FAST], [IN_DRAM]]
    assert placement({("a", "b"): 4e11}).classes(HOME) == [[FAST], [SLOW, ALSO_FAST], [IN_DRAM]]


def test_a_lender_whose_link_is_worse_than_the_hosts_comes_after_it() -> None:
    links = {("a", "b"): 4e11, ("a", "c"): 2e10, ("a", "d"): 5e10, ("a", HOST): 5e10}
    assert placement(links).classes(HOME) == [[FAST], [ALSO_FAST], [IN_DRAM], [SLOW]]


def test_what_a_device_cannot_reach_is_no_tier_for_it() -> None:
    made = placement({("a", "b"): 4e11})
    assert made.reaches_all(HOME)
    made.set_unreachable(HOME, frozenset({FAST, SLOW}))
    assert made.classes(HOME) == [[ALSO_FAST], [IN_DRAM]]
    assert not made.reaches(HOME, FAST)
    assert not made.reaches_all(HOME)
    made.set_unreachable(HOME, frozenset())
    assert made.classes(HOME)[0] == [FAST]


def test_nobody_lends_to_itself() -> None:
    made = placement({})
    made.add_home(OTHER_HOME, "e")
    made.add_tier(30, "a", owner=HOME)
    assert 30 not in chain(*made.classes(HOME))
    assert 30 in chain(*made.classes(OTHER_HOME))


def test_pools_are_known_by_the_device_that_they_lie_on() -> None:
    made = placement({})
    assert made.device_of(HOME) == "a"
    assert made.device_of(FAST) == "b"
    assert made.device_of(IN_DRAM) is None


def test_random_topologies_are_sorted_by_speed() -> None:
    source = random.Random(5)
    for _ in range(200):
        speeds = {device: source.choice([1e10, 5e10, 1e11, 4e11]) for device in ("b", "c", "d", HOST)}
        made = placement({("a", device): speed for device, speed in speeds.items()})
        order = made.classes(HOME)
        names = [[made.device_of(pool) or HOST for pool in pools] for pools in order]
        assert sorted(chain(*order)) == sorted([FAST, SLOW, ALSO_FAST, IN_DRAM])
        firsts = [speeds[group[0]] for group in names]
        assert firsts == sorted(firsts, reverse=True)
        assert all(len({speeds[device] for device in group}) == 1 for group in names)
        assert all(len(group) == 1 for group in names if HOST in group)
