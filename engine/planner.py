"""Who runs next, where, and for how long: the plan for the coming slices of all devices of a model.

The planner asks the policy for the prompts in fair order and finds room for them; pages are the store's
business. It runs on events (an arrival; a slice that is nearly used up, over, or old enough to be ended for
others; as much room as somebody waits for), never per token, and it is pure: time is an argument, plans pile
up in the devices' outboxes.

A plan looks at the devices that something happened to since the last one, and at those where that one left
something undone: of a thousand devices, an event concerns one.

Its parts: who waits (`waiting`), where something happened and where there is a place (`devices`), turns on
devices (`turns`), who makes way for whom (`preemption`), and whom runners may not survive (`suspects`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.device import Device
from engine.devices import Devices
from engine.fairness.policy import Policy
from engine.fairness.reading import ReadingFloor
from engine.memory.store import ContextStore
from engine.preemption import Preemption
from engine.prefix_sharing import PrefixSharing
from engine.prompt import Prompt
from engine.suspects import Suspects
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
    request_ns: int
    min_slice_ns: int
    gap_ns: int
    patience_ns: int
    first_slices: int
    max_model_len: int
    reserve: float
    floor_tokens_per_s: float


class Planner:
    """Fills devices with prompts."""

    def __init__(self, policy: Policy, store: ContextStore, settings: PlannerSettings) -> None:
        self.policy = policy
        self.store = store
        self.devices = Devices(store, reserve=settings.reserve if policy.rotates else 0.0)
        self.waiting = Waiting(
            policy,
            gap_ns=settings.gap_ns,
            patience_ns=settings.patience_ns,
            first_slices=settings.first_slices,
        )
        self.prefixes = PrefixSharing(store, self.devices)
        self.turns = Turns(
            policy,
            store,
            self.prefixes,
            self.devices,
            target_ns=settings.target_ns,
            slice_ns=settings.slice_ns,
            min_slice_ns=settings.min_slice_ns,
            max_model_len=settings.max_model_len,
        )
        self.suspects = Suspects()
        self._preemption = Preemption(policy, store, self.waiting, self.turns, self.devices)
        self._floor = ReadingFloor(settings.floor_tokens_per_s, settings.gap_ns)
        self.num_preemptions = 0
        self.num_deferred = 0  # prompts that waited in the last plan for what others compute
        self.is_contended = False  # somebody waited at its end

    def plan(self, now_ns: int) -> list[Device]:
        """Extend, start and end turns. Returns the devices for which something may have been written, in
        order of their coming."""
        self.turns.begin_plan()
        self._preemption.begin_plan()
        self.prefixes.begin_plan()
        self.suspects.clear()
        devices = self.devices.take_touched()
        for device in devices:
            self._renew(device, now_ns)
            if device.suspects:
                self._try_suspect(device, now_ns)
            self._vacate(device)
            self._mirror_idle(device)
        while self._fill(now_ns) and not self.devices.num_running:
            self.prefixes.begin_plan()  # a context was dropped, and no event would bring another plan
            self.turns.room_wanted.begin_plan()
        self._mirror_running(devices)
        self._reclaim()
        return self.devices.touched(devices)

    @property
    def mirror_tokens(self) -> int | None:
        """A running context is copied out whenever it has so many positions more; None: it is not."""
        return MIRROR_PAGES * self.store.layout.page_tokens if self.is_contended else None

    def leave_device(self, prompt: Prompt, now_ns: int) -> None:
        """The runner has ended the prompt's turn, or is gone: it pays for what it had."""
        self.waiting.charge(prompt, now_ns)
        self.turns.leave(prompt)

    def awaits_move(self) -> bool:
        """Whether a plan might use what a move that has just ended has made free, or go on where it left
        off."""
        store, room_wanted = self.store, self.turns.room_wanted
        if store.has_recalls or store.dirty_pools or not self.devices.num_running:
            return True
        return any(
            room_wanted.is_there(device)
            or store.is_shrinking(device.pool_id)
            or store.lacks_mirrors(device.pool_id)
            for device in self.devices.changed()
        )

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
                self.devices.touch(device)  # until there is room

    def _fill(self, now_ns: int) -> bool:
        """Find room for prompts in fair order, those first that are due. One that finds none but deserves it
        has turns ended, and lays claim to what they give back: smaller ones would take it for ever. True if
        a context had to be dropped, which makes room."""
        passed_over: list[Prompt] = []
        deferred: list[Prompt] = []
        held_back: list[Prompt] = []
        num_unplaced = 0  # of those that would fit anywhere
        waiting, prefixes = self.waiting, self.prefixes
        may_hold_back = bool(self.suspects or self._preemption.dropped.awaited)
        while not self._is_settled(now_ns) and (prompt := waiting.next(now_ns)) is not None:
            if prompt.context.node is None and prefixes.is_worth_waiting(prompt):
                deferred.append(prompt)
                if len(deferred) == MAX_DEFERRED:
                    break
                continue
            if may_hold_back and self._is_held_back(prompt, now_ns):
                held_back.append(prompt)
                continue
            if self._run(prompt, now_ns):
                continue
            passed_over.append(prompt)
            if not self.devices.can_some_hold(prompt):
                self.waiting.pass_gate(prompt, now_ns)  # nobody is to wait for it to start, until one comes
            num_unplaced += self.devices.can_all_hold(prompt)
            if num_unplaced > (MAX_PASSED_OVER if self.policy.rotates else 0):
                break
            if prompt.turn is None and self.policy.rotates:
                self._preemption.claim_room(prompt, now_ns)
        for prompt in (*passed_over, *deferred, *held_back):
            waiting.put_back(prompt, now_ns)
        self.num_deferred = len(deferred)
        if self.policy.recomputes or not self.turns.room_wanted.is_lacking:
            return False
        return self._preemption.drop_if_stuck()

    def _is_held_back(self, prompt: Prompt, now_ns: int) -> bool:
        """Whether a prompt that could start now must not."""
        if prompt.turn is None and self.suspects.holds(prompt):
            self.waiting.pass_gate(prompt, now_ns)
            return True
        return self._preemption.dropped.hold_back(prompt, self.waiting.prompts.values())

    def _try_suspect(self, device: Device, now_ns: int) -> None:
        """Give the first of a device's suspects that has room a turn there, alone. Where none has, nobody is
        tried."""
        self.devices.touch(device)
        if device.running:
            return
        for prompt in device.suspects:
            self.waiting.take(prompt, now_ns)
            if self.turns.start(prompt, device, spare=0, most_tokens=1):
                return
            self.waiting.put_back(prompt, now_ns)
        self.suspects.release(device)

    def _is_settled(self, now_ns: int) -> bool:
        """Whether no turn begins, goes on or ends in this plan any more, whoever waits. Of several devices
        that are full it is not asked: there may be a thousand."""
        if not self.devices.are_all_full:
            return False
        up = self.devices.up
        if len(up) != 1 or not self.policy.rotates:
            return not up
        return self._preemption.is_settled(next(iter(up.values())), now_ns)

    def _run(self, prompt: Prompt, now_ns: int) -> bool:
        """Extend the prompt's turn, or start one where there is room beside what others have claimed."""
        if prompt.turn is not None:
            prompt.turn.is_expiring = not self.turns.extend(prompt)
            self._preemption.extended(prompt.turn.device)
            return not prompt.turn.is_expiring
        up = self.devices.up
        for device in self._by_preference(prompt) if len(up) > 1 else up.values():
            if device.num_slots_free <= 0 or prompt.expected_tokens > device.max_context_tokens:
                continue
            most_tokens = self._most_tokens(prompt, device, now_ns) if prompt.output_ids else None
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

    def _by_preference(self, prompt: Prompt) -> Iterator[Device]:
        """Devices that may have a place in the batch and room, the best first: the one that has the prompt's
        pages, then those that have most of what it begins with, then the roomiest."""
        context = prompt.context
        home = self.devices.home_of(context)
        if home is not None and home.num_slots_free > 0:
            yield home
        if self.store.is_bound(context):
            self.turns.refuse(0)  # a move's end may set it free
            return
        end = self.turns.end_position(prompt, len(prompt.output_ids) + 1)
        num_pages = context.num_absent(end) + context.num_local
        roomiest = self.devices.with_room(num_pages)
        preferred = self._with_prefix(prompt)
        yield from preferred
        for device in roomiest:
            if device is not home and device not in preferred:
                yield device
        self.turns.refuse(num_pages)

    def _with_prefix(self, prompt: Prompt) -> list[Device]:
        """Devices with a free place that have some of what a newcomer begins with, the most first."""
        found = []
        for pool_id, prefix in self.prefixes.find(prompt).items():
            device = self.devices.up.get(pool_id)
            if prefix.end and device is not None and device.num_slots_free > 0:
                found.append((-prefix.end, -self.store.num_available(pool_id), pool_id, device))
        return [device for _, _, _, device in sorted(found)]

    # ------------------------------------------------------------------ moves

    def _mirror_idle(self, device: Device) -> None:
        """Copy out all of what does not run, so that its pages can be had for free."""
        if not self.policy.recomputes:
            device.outbox.moves += self.store.mirror_idle(device.pool_id)
        device.outbox.moves += self.store.mirror_cached(device.pool_id)
        if self.store.lacks_mirrors(device.pool_id):
            self.devices.touch(device)  # until there is room in the tiers

    def _mirror_running(self, looked_at: list[Device]) -> None:
        """Under contention, copy out the full pages of what runs, some at a time: little is left for when it
        stops."""
        if self.policy.recomputes or not self.policy.num_queued():
            self.is_contended = False
            return
        if not self.is_contended:
            self.is_contended = True
            self.devices.touch_all()
        batch = MIRROR_PAGES * self.store.layout.page_tokens
        for device in self.devices.touched(looked_at):
            for prompt in device.running:
                context = prompt.context
                if context.computed - context.mirrored >= batch:
                    device.outbox.moves += self.store.mirror(context, whole=False)
                    if context.computed - context.mirror_target >= batch:
                        self.devices.touch(device)  # until there is room in the tiers

    def _vacate(self, device: Device) -> None:
        """Go on emptying what the device's own pool is to give up; turns that are in the way end."""
        if not self.store.is_shrinking(device.pool_id):
            return
        self.devices.touch(device)
        device.outbox.moves += self.store.empty_segments(device.pool_id)
        for prompt in device.running:
            if self.store.is_in_the_way(prompt.context) and self._preemption.may_be_ended(prompt):
                self.turns.end(prompt)

    def _reclaim(self) -> None:
        """Go on emptying what lenders want back."""
        if not self.store.has_recalls:
            return
        for pool_id, move in self.store.reclaim(list(self.devices.up)):
            device = self.devices.up[pool_id]
            device.outbox.moves.append(move)
            self.devices.touch(device)

    def check_integrity(self) -> None:
        """Raise AssertionError if queues and turns contradict each other."""
        self.waiting.check_integrity()
        self.devices.check_integrity()
        for device in self.devices:
            assert device.ending.keys() <= device.running.keys()
            for prompt in device.running:
                assert prompt.turn is not None
                assert prompt.turn.device is device
                assert prompt.turn.is_ending == (prompt in device.ending)
                assert prompt.context.is_running
                assert device.by_slice[prompt.turn.slice_id] is prompt
