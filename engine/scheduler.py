"""One model's prompts on all its devices: events in, plans and tokens out.

This is the engine without its sockets: the loop feeds it messages and carries out what it decides, and the
simulator feeds it simulated ones. It holds no clock and awaits nothing.
"""

import sys

from engine.device import Device
from engine.endings import Endings
from engine.fairness.policy import Policy, Task
from engine.memory.context import Context
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.messages import (
    CostModel,
    EndReason,
    FinishReason,
    MoveEnd,
    Plan,
    PromptSpec,
    Report,
    SliceEnd,
    Submit,
    TokenDelta,
)
from engine.planner import Planner, PlannerSettings
from engine.progress import Progress
from engine.prompt import Prompt
from engine.slice_log import SliceLog
from engine.suspects import MAX_ENDS


class Scheduler:
    """Prompts are known by the api's prompt ids. Methods that change what could run set `needs_plan`."""

    def __init__(
        self,
        policy: Policy,
        store: ContextStore,
        settings: PlannerSettings,
        slice_log: SliceLog | None = None,
    ) -> None:
        self.policy = policy
        self.store = store
        self.planner = Planner(policy, store, settings)
        self.slice_log = slice_log or SliceLog()
        self.progress = Progress(policy, self.planner, self.slice_log)
        self.counters = self.progress.counters
        self.prompts: dict[str, Prompt] = {}
        self.devices: dict[str, Device] = {}
        self.needs_plan = False
        self._endings = Endings(policy, store, self.planner, self.progress, self.slice_log, self.prompts)
        self._with_news = self.progress.with_news  # tokens or an end that its api was not sent yet
        self._serial = 0

    # ------------------------------------------------------------------ prompts

    def submit(self, api_id: str, submit: Submit, spec: PromptSpec, now_ns: int) -> None:
        """Admit a prompt, or send again what its api has not received of one that is here."""
        known = self.prompts.get(spec.prompt_id)
        if known is not None:
            known.api_id = api_id
            known.num_sent = len(spec.output_ids)
            self._with_news[known] = None
            return
        self._serial += 1
        tenant = sys.intern(submit.tenant)  # one string for all prompts: plans look tenants up by it
        task = Task(
            serial=self._serial,
            tenant=tenant,
            weight=submit.weight,
            nice=submit.nice,
            arrival_ns=now_ns,
            latency_ns=submit.latency_ns,
            prompt_tokens=len(spec.input_ids),
            service_ns=spec.service_ns,
        )
        prompt = Prompt(
            prompt_id=spec.prompt_id,
            api_id=api_id,
            input_ids=spec.input_ids,
            output_ids=list(spec.output_ids),
            sampling=spec.sampling,
            task=task,
            context=self.store.open(),
            arrival_ns=now_ns,
            last_token_ns=now_ns,
            num_sent=len(spec.output_ids),
            num_restored=len(spec.output_ids),
            tokens_per_s=submit.tokens_per_s,
            salt=(tenant, submit.cache_salt) if submit.cache_salt else tenant,
        )
        if self.store.shares_prefixes:
            prompt.pack()
        self.prompts[prompt.prompt_id] = prompt
        self.counters.admitted += 1
        self.counters.prompt_tokens += len(prompt.input_ids)
        self.planner.waiting.enqueue(prompt, now_ns)
        self.needs_plan = True

    def abort(self, prompt_id: str, now_ns: int) -> None:
        """The prompt's client is gone: free what it has, at once or as soon as nothing touches it."""
        prompt = self.prompts.get(prompt_id)
        if prompt is None:
            return
        if prompt.finish is None:
            self._endings.finish(prompt, FinishReason.ABORT, now_ns)
            self.needs_plan = True
        else:  # it ended just now, and its last tokens have not been taken
            self._endings.forget(prompt)

    def take_deltas(self) -> dict[str, list[TokenDelta]]:
        """What has not been sent yet, by api id. A finished prompt is forgotten with its last delta."""
        deltas: dict[str, list[TokenDelta]] = {}
        for prompt in self._with_news:
            deltas.setdefault(prompt.api_id, []).append(prompt.take_delta())
            if prompt.finish is not None:
                del self.prompts[prompt.prompt_id]
        self._with_news.clear()
        return deltas

    def drop_deltas(self) -> None:
        """As `take_deltas`, where nobody is to be told."""
        for prompt in self._with_news:
            if prompt.finish is not None:
                del self.prompts[prompt.prompt_id]
        self._with_news.clear()

    # ------------------------------------------------------------------ runners

    def runner_up(self, name: str, pool: PagePool, max_batch: int, cost: CostModel) -> None:
        """A runner is ready. `pool` is its local pool; the same as before if it took over from one that
        was lost."""
        device = self.devices.get(name)
        if device is None:
            self.store.add_local_pool(pool, name)
            step_ns = max(1.0, cost.step_ns + cost.decode_ns)
            layout, num_pages = self.store.layout, pool.num_pages - pool.first
            holds_tokens = num_pages // len(layout.groups) * layout.page_tokens
            device = Device(name, pool.pool_id, max_batch, holds_tokens, cost, step_ns)
            self.devices[name] = device
        self.planner.devices.come(device)
        self.needs_plan = True

    def runner_lost(
        self, name: str, now_ns: int, *, pool_trusted: bool, was_killed: bool = False
    ) -> Prompt | None:
        """A runner is gone. Its prompts wait again with the positions that it had reported; if its pool
        cannot be trusted, with those that are mirrored. Unless somebody killed it, they are suspected: one
        that ends every runner is failed, and returned."""
        device = self.devices[name]
        culprit = None if was_killed else self.planner.suspects.runner_ended(device, device.running)
        self.planner.devices.go(device)
        device.outbox.take()
        device.young.clear()
        self.counters.runners_lost += 1
        self.store.lose_moves(device.pool_id)
        for prompt in list(device.running):
            self._endings.leave(prompt, now_ns)
        for context in dict.fromkeys(device.cancelled.values()):
            self.store.stop(context)
        device.cancelled.clear()
        if not pool_trusted:
            self._distrust(device.pool_id, now_ns)
        if culprit is not None:
            culprit.error = f"{MAX_ENDS} runners in a row ended while they worked on this prompt"
            self._endings.finish(culprit, FinishReason.ERROR, now_ns)
        self.needs_plan = True
        return culprit

    def start_failed(self, name: str) -> None:
        """A runner ended before it was ready: what ends it there is no prompt."""
        device = self.devices.get(name)
        if device is not None:
            self.planner.suspects.release(device)
            self.needs_plan = True

    def device_faulted(self, name: str, now_ns: int) -> None:
        """The device's pool may hold anything, and its runner is about to end: `runner_lost` is to follow.
        Until then nothing goes there, and nothing is to come from there."""
        device = self.devices[name]
        self.planner.devices.go(device)
        self._stop_departures(device.pool_id, now_ns)
        self.store.lose_idle(device.pool_id)

    def _distrust(self, pool_id: int, now_ns: int) -> None:
        """Nothing that was in this pool counts any more, nor what is on its way from there."""
        self._stop_departures(pool_id, now_ns)
        self.store.lose_local(pool_id)

    def _stop_departures(self, pool_id: int, now_ns: int) -> None:
        """Whatever is being moved from this pool starts over."""
        self._start_over_all(self.store.coming_from(pool_id), now_ns)

    def distrust_tier(self, pool_id: int, now_ns: int) -> None:
        """The bytes of a lender are not to be trusted: whatever is being moved from or to it starts over."""
        self._start_over_all(self.store.entangled(pool_id), now_ns)

    def _start_over_all(self, contexts: set[Context], now_ns: int) -> None:
        """Nothing of these contexts is to be trusted: prompts are recomputed, what is cached is given up."""
        for prompt in [p for p in self.prompts.values() if p.context in contexts and p.finish is None]:
            self._endings.start_over(prompt, now_ns)
        for context in sorted(contexts, key=lambda context: (not context.is_growing, context.serial)):
            if not context.is_growing:
                self.store.abandon(context)
            elif not context.is_closing:
                self.store.close(context)  # its prompt has ended, and the runner has not said so yet
        self.needs_plan = True

    def on_report(self, name: str, report: Report, now_ns: int) -> None:
        """A runner made steps, ended slices, completed moves."""
        device = self.devices[name]
        for step in report.steps:
            if self.progress.take(device, step, now_ns):
                self.needs_plan = True
        for end in report.ends:
            self._on_slice_end(device, end, now_ns)
        for move in report.moves:
            self._on_move_end(move)

    def plan(self, now_ns: int) -> list[tuple[str, Plan]]:
        """Decide what runs next; the plans to send, by device. Call when `needs_plan`."""
        self.needs_plan = False
        plans = []
        for device in self.planner.plan(now_ns):
            num_slices = len(device.outbox.slices) + len(device.outbox.extensions)
            plan = device.outbox.take()
            if plan is not None:
                self.counters.plans += 1
                self.counters.slices += num_slices
                plans.append((device.name, plan))
        return plans

    # ------------------------------------------------------------------ reports

    def _on_slice_end(self, device: Device, end: SliceEnd, now_ns: int) -> None:
        self.needs_plan = True
        cancelled = device.cancelled.get(end.slice_id)
        if cancelled is not None:
            device.cancelled = {i: c for i, c in device.cancelled.items() if c is not cancelled}
            self.store.stop(cancelled)
            return
        prompt = device.by_slice[end.slice_id]
        prompt.context.computed = end.computed
        reason = _FINISHED.get(end.reason)
        if reason is None:
            self._endings.leave(prompt, now_ns)
            return
        prompt.error = end.error
        self.planner.leave_device(prompt, now_ns)
        self._endings.finish(prompt, reason, now_ns)

    def _on_move_end(self, end: MoveEnd) -> None:
        self.counters.wait_ns += end.wait_ns
        if self.store.finish_move(end.move_id, end.duration_ns) and self.planner.awaits_move():
            self.needs_plan = True

    # ------------------------------------------------------------------ state

    def prompts_of(self, api_id: str) -> list[str]:
        """Ids of the prompts that an api process has here."""
        return [prompt_id for prompt_id, prompt in self.prompts.items() if prompt.api_id == api_id]

    @property
    def is_up(self) -> bool:
        """Whether some runner works."""
        return any(device.is_up for device in self.devices.values())

    def num_running(self) -> int:
        return sum(len(device.running) for device in self.devices.values())

    def num_waiting(self) -> int:
        return sum(p.turn is None and p.finish is None for p in self.prompts.values())

    def service_by_tenant(self) -> dict[str, int]:
        """GPU time charged to each tenant so far, in nanoseconds."""
        return self.planner.waiting.service_ns

    def pool_name(self, pool_id: int) -> str:
        """The device in whose memory a pool lies, or "host"."""
        return self.store.placement.device_of(pool_id) or "host"

    def check_integrity(self) -> None:
        """Raise AssertionError if queues, turns and pages contradict each other."""
        self.store.check_integrity()
        self.planner.check_integrity()
        self.slice_log.check_integrity(self.num_running())
        assert len(self.store.contexts) >= sum(p.finish is None for p in self.prompts.values())


_FINISHED = {
    EndReason.STOP: FinishReason.STOP,
    EndReason.LENGTH: FinishReason.LENGTH,
    EndReason.FAILED: FinishReason.ERROR,
}
