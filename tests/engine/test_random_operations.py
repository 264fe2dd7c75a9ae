"""Everything at once, at random: prompts that begin alike, aborts, devices that lend, shrink, die and fail,
slow links. After every step the books are right; lenders get their memory back soon; answers are exact.
"""

import random

import pytest

from tests.engine.fake_runner import FULL, WINDOWED, generate
from tests.engine.lending_rig import LendingRig
from tests.engine.rig import STEP_NS, Rig, check_outputs
from tests.engine.test_lending import distrust

LEAST_SEGMENTS = 8  # of a pool for each layer group, to hold the longest prompt
MAX_OPEN = 16  # prompts of a model
SLOWEST_MOVE = 20  # ticks
SOON_TICKS = 12 * SLOWEST_MOVE


class Storm:
    """Two models, one of them on two devices, and two lenders without a model."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random.choice
        self.layout = draw([FULL, FULL, WINDOWED])
        scale = len(self.layout.groups)
        self.least_segments = LEAST_SEGMENTS * scale
        self.lending = LendingRig(
            layout=self.layout,
            local=((48 * scale, 64 * scale), 60 * scale),
            lenders=(40, 24),
            host=draw([0, 10, 60, 300]),
            seed=seed,
            term_ns=draw([15 * STEP_NS, 10**12]),
            links=draw([None, {("d1", "l1"): 2e11, ("d2", "l2"): 2e11, ("d3", "d1"): 2e11}]),
            shares_prefixes=draw([True, True, False]),
            policy=draw(["cfs", "eevdf", "vtc", "fcfs"]),
            max_batch=draw([2, 4, 8]),
            depth=draw([1, 2]),
        )
        self.wanted: dict[str, dict[str, tuple[list[int], int]]] = {name: {} for name in self.lending.rigs}
        self._num_submitted = 0
        self._known = [[self.random.randrange(1000) for _ in range(40)] for _ in range(3)]
        self._down: dict[str, tuple[int, bool]] = {}  # by device: for how many ticks, and whether it failed
        self._asked_since: dict[tuple[str, int], int] = {}  # segments that are to be empty, in ns

    def rig_of(self, device: str) -> Rig:
        return self.lending.rigs[self.lending.model_of[device]]

    # ------------------------------------------------------------------ steps

    def step(self) -> None:
        """Something may happen, and time goes on."""
        actions = {
            self.submit: 0.3,
            self.abort: 0.02,
            self.kill: 0.006,
            self.fail: 0.004,
            self.resize: 0.03,
            self.grow_back: 0.03,
            self.lose_lender: 0.002,
            self.change_speed: 0.02,
        }
        action = self.random.choices([*actions, None], [*actions.values(), 0.588])[0]
        if action is not None:
            action()
        self.tick()

    def tick(self) -> None:
        for device, (num_ticks, has_failed) in list(self._down.items()):
            self._down[device] = (num_ticks - 1, has_failed)
            if not num_ticks:
                self.start(device)
        self.lending.alive = {name for name, rig in self.lending.rigs.items() if rig.runners}
        self.lending.tick()
        self.lending.check_integrity()
        self.check_progress()

    def check_progress(self) -> None:
        """What is to be empty is so soon."""
        now_ns = self.lending.now_ns
        asked = {
            (lender.name, segment)
            for lender in self.lending.lending.lenders.values()
            for segment in lender.recalls.keys() | lender.leaving
        }
        self._asked_since = {each: self._asked_since.get(each, now_ns) for each in asked}
        assert all(now_ns - since_ns < SOON_TICKS * STEP_NS for since_ns in self._asked_since.values())

    def submit(self) -> None:
        model = self.random.choice(list(self.wanted))
        rig = self.lending.rigs[model]
        if len(rig.scheduler.prompts) >= MAX_OPEN:
            return
        ids = [self.random.randrange(1000) for _ in range(self.random.randint(1, 12))]
        if self.random.random() < 0.7:
            trunk = self.random.choice(self._known)
            ids = trunk[: self.random.randint(1, len(trunk))] + ids
        num_tokens = self.random.randint(1, 40)
        if self.random.random() < 0.3:
            self._known.append((ids + generate(self.layout, ids, num_tokens))[:45])
        name = f"p{self._num_submitted}"
        self._num_submitted += 1
        self.wanted[model][name] = ids, num_tokens
        rig.submit(name, ids, num_tokens, tenant=self.random.choice("ab"))

    def abort(self) -> None:
        model = self.random.choice(list(self.wanted))
        rig = self.lending.rigs[model]
        if rig.scheduler.prompts:
            gone = self.random.choice(list(rig.scheduler.prompts))
            del self.wanted[model][gone]
            rig.abort(gone)

    def kill(self) -> None:
        """A runner is killed; its pool is still there."""
        device = self.some_device()
        if device is not None:
            self.rig_of(device).kill_runner(device)
            self._down[device] = self.random.randint(0, 20), False

    def fail(self) -> None:
        """A device fails: what is in its pool may be anything, and its runner is about to end."""
        device = self.some_device()
        if device is not None:
            rig = self.rig_of(device)
            del rig.runners[device]
            rig.scheduler.device_faulted(device, rig.now_ns)
            distrust(self.lending, device)
            self._down[device] = self.random.randint(0, 20), True

    def start(self, device: str) -> None:
        rig, (_, has_failed) = self.rig_of(device), self._down.pop(device)
        if has_failed:
            culprit = rig.scheduler.runner_lost(device, rig.now_ns, pool_trusted=False)
            distrust(self.lending, device)
            if culprit is not None:
                del self.wanted[self.lending.model_of[device]][culprit.prompt_id]
        rig.start_runner(device)
        rig.flush()

    def some_device(self) -> str | None:
        """One that works, perhaps."""
        device = self.random.choice(list(self.lending.model_of))
        return None if device in self._down else device

    def resize(self) -> None:
        name = self.random.choice(list(self.lending.lending.lenders))
        least = self.least_segments if name in self.lending.model_of else 1
        most = self.lending.lending.lenders[name].num_segments
        self.lending.lending.resize(name, self.random.randint(least, most))

    def grow_back(self) -> None:
        lender = self.random.choice(list(self.lending.lending.lenders.values()))
        self.lending.lending.resize(lender.name, lender.num_segments)
        self.lending.lending.restore(lender.name, set(lender.withdrawn))

    def lose_lender(self) -> None:
        """A GPU on which nothing runs is gone."""
        name = self.random.choice(["l1", "l2"])
        for model, pool in self.lending.lending.lenders[name].pools.items():
            self.lending.rigs[model].scheduler.distrust_tier(pool.pool_id, self.lending.now_ns)
        self.lending.lending.lose_lender(name, is_gone=True)
        for rig in self.lending.rigs.values():
            rig.flush()

    def change_speed(self) -> None:
        device = self.some_device()
        if device is not None:
            runner = self.rig_of(device).runners[device]
            runner.move_ticks = self.random.choice([None, 1, 5, SLOWEST_MOVE])

    # ------------------------------------------------------------------ the end

    def end(self) -> None:
        """Whatever was accepted and not aborted is answered, and exactly."""
        for _ in range(5_000):
            rigs = self.lending.rigs.values()
            if not any(rig.scheduler.prompts or rig.store.num_moves_in_flight for rig in rigs):
                break
            self.tick()
        else:
            raise AssertionError("it never comes to rest")
        for model, wanted in self.wanted.items():
            check_outputs(self.lending.rigs[model], wanted)


def run(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(250):
        storm.step()
    storm.end()


@pytest.mark.parametrize("seed", [*range(5), 5123, 5335])
def test_the_books_are_right_after_every_step(seed: int) -> None:
    run(seed)


@pytest.mark.parametrize("seed", [0, 1, 20180, 20436])
def test_so_they_are_in_small_portions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts are copied out and evicted a few pages at a time, as large ones are."""
    monkeypatch.setattr("engine.memory.local_copies.SMALL_PAGES", 2)
    monkeypatch.setattr("engine.memory.pool.FULL_MOVE_PAGES", 5)
    monkeypatch.setattr("engine.planner.MIRROR_PAGES", 1)
    run(seed)
