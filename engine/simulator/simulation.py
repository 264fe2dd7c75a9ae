"""A trace through the real scheduler on simulated runners: what `engine.loop` does, on a manual clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from engine.fairness import make_policy
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import PromptSpec, Report, Sampling, Submit
from engine.planner import PlannerSettings
from engine.scheduler import Scheduler
from engine.simulator.clock import EventQueue
from engine.simulator.hardware import Cluster
from engine.simulator.runner import SimulatedRunner
from loadgen.arrivals import ClosedLoop
from loadgen.plan import Sending
from loadgen.results import Counting, Outcome, RequestRecord
from loadgen.traces import BLOCK_TOKENS

_API = "simulator"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine did: times are summed over its GPUs."""

    busy_ns: int
    stall_ns: int  # compute waited for moves and for nothing else
    num_steps: int
    num_preemptions: int
    recomputed_tokens: int
    moved_pages: int
    end_ns: int

    def busy_fraction(self, num_gpus: int) -> float:
        return self.busy_ns / max(1, self.end_ns * num_gpus)


class Simulation:
    """One model on a cluster, with arrivals and tokens as an api process beside the engine would see them."""

    def __init__(
        self,
        cluster: Cluster,
        policy: str,
        settings: PlannerSettings,
        sendings: Sequence[Sending],
        weights: dict[str, float],
        *,
        closed_loop: ClosedLoop | None = None,
        shares_prefixes: bool = True,
    ) -> None:
        self._sendings = sendings
        self._closed_loop = closed_loop
        self._sent_s = [0.0] * len(sendings)
        self._num_sent = 0
        self._plan_ns = cluster.plan_ns
        self._engine_free_ns = 0
        self._is_plan_set = False
        self._weights = weights
        self._events = EventQueue()
        self._times_s: list[list[float]] = [[] for _ in sendings]
        store = ContextStore(cluster.layout, shares_prefixes=shares_prefixes)
        peer_pool, host_pool = cluster.num_gpus + 1, cluster.num_gpus + 2
        page_bytes = cluster.layout.page_bytes
        if cluster.peer_pages:
            store.add_tier(PagePool(peer_pool, cluster.peer_pages, page_bytes))
        store.add_tier(PagePool(host_pool, cluster.host_pages, page_bytes))
        chosen = make_policy(
            policy,
            slice_ns=settings.slice_ns,
            request_ns=settings.request_ns,
            granularity_ns=settings.min_slice_ns,
        )
        self.scheduler = Scheduler(chosen, store, settings)
        self.runners: dict[str, SimulatedRunner] = {}
        for number in range(1, cluster.num_gpus + 1):
            self._add_runner(cluster, f"gpu{number}", number, host_pool)
        if closed_loop is not None:
            for _ in range(closed_loop.users):
                self._submit_next()
            return
        for sending in sendings:
            assert sending.at_s is not None
            self._events.at(round(sending.at_s * 1e9), partial(self._submit, sending))

    def _add_runner(self, cluster: Cluster, name: str, pool_id: int, host_pool: int) -> None:
        def on_report(report: Report) -> None:
            self._on_report(name, report)

        runner = SimulatedRunner(self._events, cluster, pool_id, host_pool, on_report, self._on_tokens)
        self.runners[name] = runner
        pool = PagePool(pool_id, cluster.pool_pages + 1, cluster.layout.page_bytes, first=1)
        self.scheduler.runner_up(name, pool, cluster.max_batch, cluster.gpu.cost)

    def run(self) -> list[RequestRecord]:
        """All requests to their ends; one record each."""
        self._events.run()
        assert not self.scheduler.prompts, f"never finished: {list(self.scheduler.prompts)[:5]}"
        return [self._record(sending) for sending in self._sendings]

    def step(self) -> bool:
        """Go on to the next event; False if there is none."""
        if not self._events:
            return False
        self._events.step()
        return True

    @property
    def now_ns(self) -> int:
        return self._events.now_ns

    def token_times_s(self, index: int) -> list[float]:
        """When the request at `index` got its tokens, so far."""
        return self._times_s[index]

    def machine(self) -> Machine:
        runners, scheduler = self.runners.values(), self.scheduler
        return Machine(
            busy_ns=sum(runner.busy_ns for runner in runners),
            stall_ns=sum(runner.stall_ns for runner in runners),
            num_steps=sum(runner.num_steps for runner in runners),
            num_preemptions=scheduler.planner.num_preemptions,
            recomputed_tokens=scheduler.counters.recomputed_tokens,
            moved_pages=sum(scheduler.store.counters.moved_pages.values()),
            end_ns=self._events.now_ns,
        )

    def _submit(self, sending: Sending) -> None:
        """The seed tells runners' tokens apart; ids are equal where the trace says that contents are."""
        self._sent_s[sending.index] = self._events.now_ns / 1e9 if sending.at_s is None else sending.at_s
        sampling = Sampling(max_tokens=sending.row.output_tokens, seed=sending.index)
        prompt_id = str(sending.index)
        spec = PromptSpec(prompt_id=prompt_id, input_ids=_ids(sending), sampling=sampling)
        submit = Submit(
            request_id=prompt_id,
            model="",
            prompts=[spec],
            tenant=sending.tenant,
            weight=self._weights[sending.tenant],
        )
        self.scheduler.submit(_API, submit, spec, self._events.now_ns)
        self._plan()

    def _submit_next(self) -> None:
        """A user of a closed loop sends the next row, if there is one."""
        if self._num_sent < len(self._sendings):
            sending = self._sendings[self._num_sent]
            self._num_sent += 1
            self._events.at(self._events.now_ns, partial(self._submit, sending))

    def _on_report(self, name: str, report: Report) -> None:
        self.scheduler.on_report(name, report, self._events.now_ns)
        if report.ends:
            self.scheduler.drop_deltas()
        self._plan()

    def _plan(self) -> None:
        """Plan, at once or when the engine is done with its last plan: then for all that came until then."""
        if not self.scheduler.needs_plan:
            return
        now_ns = self._events.now_ns
        if now_ns < self._engine_free_ns:
            if not self._is_plan_set:
                self._is_plan_set = True
                self._events.at(self._engine_free_ns, self._plan_late)
            return
        self._engine_free_ns = now_ns + self._plan_ns
        for name, plan in self.scheduler.plan(now_ns):
            self.runners[name].send(plan)

    def _plan_late(self) -> None:
        self._is_plan_set = False
        self._plan()

    def _on_tokens(self, seeds: Sequence[int]) -> None:
        now_s, times_s = self._events.now_ns / 1e9, self._times_s
        for seed in seeds:
            times_s[seed].append(now_s)
        if self._closed_loop is not None:
            think_ns = round(self._closed_loop.think_s * 1e9)
            for seed in seeds:
                if len(times_s[seed]) == self._sendings[seed].row.output_tokens:
                    self._events.at(self._events.now_ns + think_ns, self._submit_next)

    def _record(self, sending: Sending) -> RequestRecord:
        row, times_s = sending.row, self._times_s[sending.index]
        return RequestRecord(
            index=sending.index,
            row=row.line,
            tenant=sending.tenant,
            outcome=Outcome.OK,
            sent_s=self._sent_s[sending.index],
            scheduled_s=sending.at_s,
            end_s=times_s[-1],
            asked_input_tokens=row.input_tokens,
            asked_output_tokens=row.output_tokens,
            input_tokens=row.input_tokens,
            output_tokens=len(times_s),
            counted_by=Counting.EACH_USAGE,
            finish_reason="length",
            chunk_s=times_s,
            chunk_tokens=[1] * len(times_s),
        )


def _ids(sending: Sending) -> list[int]:
    """Equal ids where the trace names equal blocks, and the request's own (below 0) elsewhere."""
    ids: list[int] = []
    for hash_id in sending.row.hash_ids:
        ids += [hash_id] * min(BLOCK_TOKENS, sending.row.input_tokens - len(ids))
    return ids + [-1 - sending.index] * (sending.row.input_tokens - len(ids))
