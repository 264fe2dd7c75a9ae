"""Who runs next, where, and for how long: the plan for the coming slices of all devices of a model.

The planner asks the policy for the prompts in fair order and finds room for them; pages are the store's
business. It runs on events (an arrival, a slice that is nearly used up, a slice that ended, room that came
back), never per token, and it is pure: time is an argument, plans pile up in the devices' outboxes.

Its parts: who waits (`waiting`), turns on devices (`turns`), and who makes way for whom (`preemption`).
"""

from dataclasses import dataclass

from engine.device import Device
from engine.fairness.policy import Policy
from engine.fairness.reading import ReadingFloor
from engine.memory.store import ContextStore
from engine.preemption import Preemption
from engine.prefix_sharing import PrefixSharing
from engine.prompt import Prompt
from engine.turns import Turns
from engine.waiting import Waiting

MAX_PASSED_OVER = 4  # prompts in fair order that may find no room before the search for smaller ones ends
MAX_DEFERRED = 64  # prompts that may wait for what others compute before a plan looks no further
MIRROR_PAGES = 4  # pages per group that a running context copies out in one move, at least


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """The planner's part of the configuration, in its own units."""

    target_ns: int
    slice_ns: int
    min_slice_ns: int
    gap_ns: int
    first_slices: int
    max_model_len: int
    reserve: float
    floor_tokens_per_s: float


class Planner:
    """Fills devices with prompts."""

    def __init__(self, policy: Policy, store: ContextStore, settings: PlannerSettings) -> None:
        self.policy = policy
        self.store = store
        self.devices: list[Device] = []
        self.waiting = Waiting(policy, gap_ns=settings.gap_ns, first_slices=settings.first_slices)
        self.prefixes = PrefixSharing(store)
        self.turns = Turns(
            policy,
            store,
            self.prefixes,
            target_ns=settings.target_ns,
            slice_ns=settings.slice_ns,
            min_slice_ns=settings.min_slice_ns,
            max_model_len=settings.max_model_len,
            reserve=settings.reserve,
        )
        self._preemption = Preemption(policy, store, self.waiting, self.turns)
        self._floor = ReadingFloor(settings.floor_tokens_per_s, settings.gap_ns)
        self.num_preemptions = 0
        self.num_deferred = 0  # prompts that waited in the last plan for what others compute

    def plan(self, now_ns: int) -> None:
        """Extend, start and end turns on all devices."""
        devices = [device for device in self.devices if device.is_up]
        self.turns.begin_plan(self.devices)
        self._preemption.begin_plan(devices)
        self.prefixes.begin_plan()
        for device in devices:
            self._renew(device, now_ns)
            self._vacate(device, now_ns)
            self._mirror_idle(device)
        while self._fill(devices, now_ns) and not any(device.running for device in devices):
            continue  # a context was dropped, and no event would bring another plan
        for device in devices:
            self._mirror_running(device)
        self._reclaim(devices)

    def leave_device(self, prompt: Prompt, now_ns: int) -> None:
        """The runner has ended the prompt's turn, or is gone: it pays for what it had."""
        self.waiting.charge(prompt, now_ns)
        self.turns.leave(prompt)

    def _renew(self, device: Device, now_ns: int) -> None:
        """Turns that are nearly used up: go on at once if nobody waits, else compete in fair order."""
        for prompt in list(device.running):
            turn = prompt.turn
            assert turn is not None
            if turn.is_expiring or not self.turns.is_nearly_used_up(prompt):
                continue
            if self.policy.rotates and self.policy.num_queued():
                turn.is_expiring = True
                self.waiting.requeue(prompt, now_ns)
                continue
            self.waiting.charge(prompt, now_ns)
            if not self.turns.extend(prompt):
                self._preemption.make_way(device)

    def _fill(self, devices: list[Device], now_ns: int) -> bool:
        """Find room for prompts in fair order, those first that are due. One that finds none but deserves it
        has turns ended, and lays claim to what they give back: smaller ones would take it for ever. True if
        a context had to be dropped, which makes room."""
        passed_over: list[Prompt] = []
        deferred: list[Prompt] = []
        while devices and (prompt := self.waiting.next(now_ns)) is not None:
            if prompt.context.node is None and self.prefixes.is_worth_waiting(prompt, devices):
                deferred.append(prompt)
                if len(deferred) == MAX_DEFERRED:
                    break
                continue
            if self._run(prompt, devices, now_ns):
                continue
            passed_over.append(prompt)
            if not self.policy.rotates or len(passed_over) > MAX_PASSED_OVER:
                break
            if prompt.turn is None:
                self._preemption.claim_room(prompt, now_ns)
        for prompt in (*passed_over, *deferred):
            self.waiting.put_back(prompt, now_ns)
        self.num_deferred = len(deferred)
        if not passed_over or self.policy.recomputes:
            return False
        return self._preemption.drop_if_stuck(devices)

    def _run(self, prompt: Prompt, devices: list[Device], now_ns: int) -> bool:
        """Extend the prompt's turn, or start one where there is room beside what others have claimed."""
        if prompt.turn is not None:
            prompt.turn.is_expiring = not self.turns.extend(prompt)
            return not prompt.turn.is_expiring
        for device in self._by_preference(prompt, devices):
            most_tokens = self._most_tokens(prompt, device, now_ns)
            if self.turns.start(prompt, device, self._preemption.spare_pages(device), most_tokens):
                return True
        return False

    def _most_tokens(self, prompt: Prompt, device: Device, now_ns: int) -> int | None:
        """A prompt that is due has what the floor asks for, and only then competes in fair order again. None:
        a whole slice."""
        since_ns = prompt.first_token_ns
        if since_ns is None or not self.policy.rotates or not self.waiting.is_due(prompt, now_ns):
            return None
        floor = self._floor.at(prompt.tokens_per_s)
        return floor.turn_tokens(
            num_read=floor.num_read(since_ns, now_ns),
            num_tokens=prompt.num_sampled,
            step_ns=device.step_ns,
        )

    def _by_preference(self, prompt: Prompt, devices: list[Device]) -> list[Device]:
        """Devices with a free place in the batch: the one that has the prompt's pages, then the emptiest."""
        free = [device for device in devices if len(device.running) < device.max_batch]
        if len(free) <= 1:
            return free
        context, available = prompt.context, self.store.num_available
        home = context.home if context.home is not None else context.indexed_at
        cached = {device: self.prefixes.num_cached(prompt, device) for device in free}
        return sorted(free, key=lambda d: (d.pool_id != home, -cached[d], -available(d.pool_id), d.pool_id))

    # ------------------------------------------------------------------ moves

    def _mirror_idle(self, device: Device) -> None:
        """Copy out all of what does not run, so that its pages can be had for free."""
        if not self.policy.recomputes:
            device.outbox.moves += self.store.mirror_idle(device.pool_id)
        device.outbox.moves += self.store.mirror_cached(device.pool_id)

    def _mirror_running(self, device: Device) -> None:
        """Under contention, copy out the full pages of what runs, some at a time: little is left for when it
        stops."""
        if self.policy.recomputes or not self.policy.num_queued():
            return
        batch = MIRROR_PAGES * self.store.layout.page_tokens
        for prompt in device.running:
            if prompt.context.computed - prompt.context.mirrored >= batch:
                device.outbox.moves += self.store.mirror(prompt.context, whole=False)

    def _vacate(self, device: Device, now_ns: int) -> None:
        """Go on emptying what the device's own pool is to give up; turns that are in the way end."""
        if not self.store.is_shrinking(device.pool_id):
            return
        device.outbox.moves += self.store.empty_segments(device.pool_id)
        for prompt in device.running:
            if self.store.is_in_the_way(prompt.context) and self._preemption.may_be_ended(prompt, 0, now_ns):
                self.turns.end(prompt)

    def _reclaim(self, devices: list[Device]) -> None:
        """Go on emptying what lenders want back."""
        by_pool = {device.pool_id: device for device in devices}
        for pool_id, move in self.store.reclaim(list(by_pool)) if self.store.has_recalls else ():
            by_pool[pool_id].outbox.moves.append(move)

    def check_integrity(self) -> None:
        """Raise AssertionError if queues and turns contradict each other."""
        self.waiting.check_integrity()
        for device in self.devices:
            assert device.ending.keys() <= device.running.keys()
            for prompt in device.running:
                assert prompt.turn is not None
                assert prompt.turn.device is device
                assert prompt.turn.is_ending == (prompt in device.ending)
                assert prompt.context.is_running
                assert device.by_slice[prompt.turn.slice_id] is prompt
