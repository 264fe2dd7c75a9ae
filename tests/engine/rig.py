"""A scheduler on fake runners and a manual clock: the engine without processes, for tests."""

import random
from collections.abc import Sequence

from engine.fairness import make_policy
from engine.memory.page import PageLayout
from engine.memory.placement import Placement
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import CostModel, FinishReason, PromptSpec, Sampling, Submit
from engine.planner import PlannerSettings
from engine.scheduler import Scheduler
from engine.slice_log import SliceLog
from tests.engine.fake_runner import FakeRunner, Pools, generate, make_pools

STEP_NS = 10_000_000
HOST = 100


def settings(**changes) -> PlannerSettings:
    defaults = {
        "target_ns": 40 * STEP_NS,
        "slice_ns": 16 * STEP_NS,
        "request_ns": 8 * STEP_NS,
        "min_slice_ns": 4 * STEP_NS,
        "gap_ns": 60 * STEP_NS,
        "patience_ns": 300 * STEP_NS,
        "first_slices": 4,
        "max_model_len": 200,
        "reserve": 0.1,
        "floor_tokens_per_s": 25.0,
    }
    return PlannerSettings(**(defaults | changes))


class Rig:
    """Devices "d1", "d2", ... with local pools 1, 2, ... and a host tier. A tick is one step of each."""

    def __init__(
        self,
        layout: PageLayout,
        *,
        policy: str = "cfs",
        local: Sequence[int] = (40,),
        host: int = 400,
        max_batch: int = 4,
        depth: int = 1,
        seed: int = 0,
        first_pool: int = 1,
        segment_pages: int | None = None,
        placement: Placement | None = None,
        shares_prefixes: bool = True,
        slice_log: SliceLog | None = None,
        **changes,
    ) -> None:
        self.layout = layout
        self.now_ns = 1_000_000_000
        self.max_batch, self.depth, self.seed = max_batch, depth, seed
        self.settings = settings(**changes)
        self.store = ContextStore(layout, placement, shares_prefixes=shares_prefixes)
        self.store.add_tier(PagePool(HOST, host, layout.page_bytes))
        chosen = make_policy(
            policy,
            slice_ns=self.settings.slice_ns,
            request_ns=self.settings.request_ns,
            granularity_ns=self.settings.min_slice_ns,
        )
        self.scheduler = Scheduler(chosen, self.store, self.settings, slice_log)
        sizes = dict(enumerate(local, start=first_pool))
        self.pools: Pools = make_pools(layout, {**sizes, HOST: host})
        self.ledgers = {
            f"d{pool}": PagePool(
                pool,
                size,
                layout.page_bytes,
                first=1,
                segment_bytes=segment_pages and segment_pages * layout.page_bytes,
            )
            for pool, size in sizes.items()
        }
        self.runners: dict[str, FakeRunner] = {}
        for name in self.ledgers:
            self.start_runner(name)
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, FinishReason] = {}
        self.cached_tokens: dict[str, int] = {}
        self.token_times: dict[str, list[int]] = {}

    def start_runner(self, name: str) -> None:
        pool = self.ledgers[name].pool_id
        self.runners[name] = FakeRunner(
            self.layout,
            self.pools,
            pool,
            max_batch=self.max_batch,
            depth=self.depth,
            seed=self.seed + pool,
        )
        cost = CostModel(step_ns=STEP_NS, decode_ns=1, prefill_ns=1)
        self.scheduler.runner_up(name, self.ledgers[name], self.max_batch, cost)

    def kill_runner(self, name: str, *, trusted: bool = True, was_killed: bool = True) -> None:
        """Its moves and steps in flight are lost; if the pool is not trusted, so are its bytes. Unless it
        `was_killed`, it ended by itself."""
        del self.runners[name]
        if not trusted:
            self._spoil(name)
        self.scheduler.runner_lost(name, self.now_ns, pool_trusted=trusted, was_killed=was_killed)

    def fault_runner(self, name: str, num_ticks: int) -> None:
        """It says that it failed, its pool is spoiled, and it takes so many ticks to end."""
        del self.runners[name]
        self.scheduler.device_faulted(name, self.now_ns)
        self._spoil(name)
        for _ in range(num_ticks):
            self.tick()
        self.scheduler.runner_lost(name, self.now_ns, pool_trusted=False)

    def _spoil(self, name: str) -> None:
        pool = self.pools[self.ledgers[name].pool_id]
        pool[:] = [[-9] * self.layout.page_tokens for _ in pool]

    def submit(self, prompt_id: str, ids: Sequence[int], max_tokens: int, **request) -> None:
        output_ids = request.pop("output_ids", [])
        sampling = request.pop("sampling", None) or Sampling(max_tokens=max_tokens, temperature=0.0)
        spec = PromptSpec(
            prompt_id=prompt_id, input_ids=list(ids), sampling=sampling, output_ids=list(output_ids)
        )
        submit = Submit(request_id=prompt_id, model="m", prompts=[spec], **request)
        self.outputs.setdefault(prompt_id, list(output_ids))
        self.token_times.setdefault(prompt_id, [])
        self.scheduler.submit("api", submit, spec, self.now_ns)
        self.flush()

    def abort(self, prompt_id: str) -> None:
        self.scheduler.abort(prompt_id, self.now_ns)
        self.flush()

    def flush(self) -> None:
        """What a turn of the engine loop does."""
        if self.scheduler.needs_plan:
            for name, plan in self.scheduler.plan(self.now_ns):
                self.runners[name].apply(plan)
        for deltas in self.scheduler.take_deltas().values():
            for delta in deltas:
                self.cached_tokens[delta.prompt_id] = delta.cached_tokens
                output = self.outputs[delta.prompt_id]
                assert delta.start == len(output)
                output += delta.ids
                self.token_times[delta.prompt_id] += [self.now_ns] * len(delta.ids)
                if delta.finish is not None:
                    self.finished[delta.prompt_id] = delta.finish

    def tick(self) -> None:
        self.now_ns += STEP_NS
        for name, runner in list(self.runners.items()):
            self.scheduler.on_report(name, runner.tick(), self.now_ns)
        self.flush()

    def run(self, max_ticks: int = 20_000, *, check_every: int = 50) -> None:
        """Until everything is finished and all moves are made."""
        for number in range(max_ticks):
            if not self.scheduler.prompts and not self.store.num_moves_in_flight:
                return
            self.tick()
            if number % check_every == 0:
                self.scheduler.check_integrity()
        raise AssertionError(f"not finished: {list(self.scheduler.prompts)}")


def random_prompts(count, seed=0, longest=30):
    """Ids and the length of the answer, by prompt id."""
    source = random.Random(seed)
    return {
        f"p{number}": (
            [source.randrange(1000) for _ in range(source.randint(1, longest))],
            source.randint(1, 40),
        )
        for number in range(count)
    }


def check_outputs(rig, wanted):
    """Every one of these prompts has its answer, and its pages are free or cached."""
    for prompt_id, (ids, max_tokens) in wanted.items():
        assert rig.finished[prompt_id] == FinishReason.LENGTH
        assert rig.outputs[prompt_id] == generate(rig.layout, ids, max_tokens), prompt_id
    rig.scheduler.check_integrity()
    cached = rig.store.num_cached_pages()
    for pool in (*rig.store.local_pools.values(), *rig.store.tiers.values()):
        assert pool.num_used == cached.get(pool.pool_id, 0)
