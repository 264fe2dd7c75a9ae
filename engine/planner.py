"""Who runs next, where, and for how long: the plan for the coming slices of all devices of a model.

The planner asks the policy for the prompts in fair order and finds room for them; pages are the store's
business. It runs on events (an arrival, a slice that is nearly used up, a slice that ended, room that came
back), never per token, and it is pure: time is an argument, plans pile up in the devices' outboxes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from engine.device import Device
from engine.fairness.first_slices import FirstSliceGate
from engine.fairness.gap import GapQueue
from engine.fairness.policy import Policy, Task
from engine.fairness.slice_length import slice_length_ns
from engine.memory.store import ContextStore
from engine.messages import Extension, Slice
from engine.prompt import Prompt, Turn

MAX_PASSED_OVER = 8  # prompts in fair order that may find no room before the search for smaller ones ends
MIN_STEPS = 4  # a slice is worth at least so many steps: switching costs about one
LOOKAHEAD_NS = 20_000_000  # the next slice is planned so long before this one is used up, ...
LOOKAHEAD_STEPS = 2  # ... and at least so many steps
MIRROR_PAGES = 4  # pages per group that a running context copies out in one move, at least
GRANT_PAGES = 2  # when nobody waits, a slice is a grant of so many pages: more would only lie unused
UNCONTENDED_NS = 250_000_000  # slices when nobody waits: only a grant of pages, which an arrival cuts short


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


class Planner:
    """Fills devices with prompts. `queue_of` maps a policy's task back to its prompt."""

    def __init__(self, policy: Policy, store: ContextStore, settings: PlannerSettings) -> None:
        self.policy = policy
        self.store = store
        self.settings = settings
        self.devices: list[Device] = []
        self.prompts: dict[Task, Prompt] = {}
        self.gaps = GapQueue(settings.gap_ns)
        self.gate = FirstSliceGate(settings.first_slices)
        self.num_preemptions = 0
        self.service_ns: dict[str, int] = {}  # by tenant
        self._slice_ids = count(1)
        self._slice_lengths: dict[Device, int] = {}  # in tokens, of the plan being made

    # ------------------------------------------------------------------ the queue

    def enqueue(self, prompt: Prompt, now_ns: int) -> None:
        """A new prompt waits for its first slice: behind its tenant's gate, then in the fair queue."""
        self.prompts[prompt.task] = prompt
        if prompt.has_first_token or not self.policy.rotates or self.gate.enter(prompt.task):
            self._join(prompt, now_ns)

    def requeue(self, prompt: Prompt, now_ns: int) -> None:
        """A prompt whose turn is over, or nearly, waits for the next; it pays for what it had."""
        self._charge(prompt, now_ns)
        self._put_back(prompt, now_ns)

    def forget(self, prompt: Prompt, now_ns: int) -> None:
        """The prompt is finished or aborted."""
        self._charge(prompt, now_ns)
        self.gaps.discard(prompt.task)
        if not self.gate.holds(prompt.task):
            self.policy.leave(prompt.task, now_ns)
        self._pass_gate(prompt, now_ns)
        del self.prompts[prompt.task]

    def on_first_token(self, prompt: Prompt, now_ns: int) -> None:
        """The prompt's first slice has done its duty; the next of its tenant may enter."""
        self._pass_gate(prompt, now_ns)

    def _pass_gate(self, prompt: Prompt, now_ns: int) -> None:
        for task in self.gate.leave(prompt.task):
            self._join(self.prompts[task], now_ns)

    def _join(self, prompt: Prompt, now_ns: int) -> None:
        self.policy.join(prompt.task, now_ns)
        self.gaps.add(prompt.task, self._waits_since(prompt))

    def _put_back(self, prompt: Prompt, now_ns: int) -> None:
        self.policy.put_back(prompt.task, now_ns)
        self.gaps.add(prompt.task, self._waits_since(prompt))

    def _waits_since(self, prompt: Prompt) -> int:
        """The time that a prompt's gap counts from. One that waits for its first token is due at once, before
        all that are overdue by less than half the bound: so it is soon served, and a stream of newcomers
        delays nobody for longer."""
        if prompt.has_first_token:
            return prompt.last_token_ns
        return prompt.arrival_ns - self.settings.gap_ns * 3 // 2

    def _is_due(self, prompt: Prompt, now_ns: int) -> bool:
        return self.gaps.is_overdue(self._waits_since(prompt), now_ns)

    def _charge(self, prompt: Prompt, now_ns: int) -> None:
        used_ns, prompt.uncharged_ns = prompt.uncharged_ns, 0
        if used_ns:
            tenant = prompt.task.tenant
            self.service_ns[tenant] = self.service_ns.get(tenant, 0) + used_ns
            self.policy.charge(prompt.task, used_ns, now_ns)

    # ------------------------------------------------------------------ planning

    def plan(self, now_ns: int) -> None:
        """Extend, start and end turns on all devices."""
        devices = [device for device in self.devices if device.is_up]
        self._slice_lengths.clear()
        for device in devices:
            self._renew(device, now_ns)
            self._vacate(device, now_ns)
            self._mirror_idle(device)
        self._fill(devices, now_ns)
        for device in devices:
            self._mirror_running(device)
        self._reclaim(devices)

    def _renew(self, device: Device, now_ns: int) -> None:
        """Turns that are nearly used up: go on at once if nobody waits, else compete in fair order."""
        for prompt in list(device.running):
            turn = prompt.turn
            assert turn is not None
            if turn.is_expiring or not self.is_nearly_used_up(prompt):
                continue
            if self.policy.rotates and self.policy.num_queued():
                turn.is_expiring = True
                self.requeue(prompt, now_ns)
                continue
            self._charge(prompt, now_ns)
            if not self._extend(prompt):
                self._make_way(device, now_ns)

    def is_nearly_used_up(self, prompt: Prompt) -> bool:
        """Whether the prompt's next slice is due to be planned."""
        turn = prompt.turn
        assert turn is not None
        if turn.is_ending or turn.until >= prompt.sampling.max_tokens:
            return False
        lookahead = max(LOOKAHEAD_STEPS, round(LOOKAHEAD_NS / turn.device.step_ns))
        return turn.until - len(prompt.output_ids) <= lookahead

    def _fill(self, devices: list[Device], now_ns: int) -> None:
        """Find room for prompts in fair order, those first that are due. One that finds none but deserves it
        has turns ended, and lays claim to what they give back: smaller ones would take it for ever."""
        passed_over: list[Prompt] = []
        claims = dict.fromkeys(devices, 0)
        while devices and (prompt := self._next(now_ns)) is not None:
            if self._run(prompt, claims):
                continue
            passed_over.append(prompt)
            if not self.policy.rotates or len(passed_over) > MAX_PASSED_OVER:
                break
            if prompt.turn is None:
                self._claim_room(prompt, claims, now_ns)
        for prompt in passed_over:
            self._put_back(prompt, now_ns)
        if passed_over and not self.policy.recomputes:
            self._drop_if_stuck(devices)

    def _next(self, now_ns: int) -> Prompt | None:
        """The prompt that should run next, taken out of the queue: of the tenant that the policy chooses,
        one that has waited too long for a token, or else the policy's choice."""
        task = self.policy.pick(now_ns)
        if task is None:
            return None
        late = self.gaps.oldest_overdue(task.tenant, now_ns) if self.policy.rotates else None
        if late is not None and late is not task:
            self.policy.put_back(task, now_ns)
            self.policy.take(late, now_ns)
            task = late
        self.gaps.discard(task)
        return self.prompts[task]

    def _run(self, prompt: Prompt, claims: dict[Device, int]) -> bool:
        """Extend the prompt's turn, or start one where there is room beside what others have claimed."""
        if prompt.turn is not None:
            prompt.turn.is_expiring = False
            if self._extend(prompt):
                return True
            prompt.turn.is_expiring = True
            return False
        return any(self._start(prompt, each, claims[each]) for each in self._by_preference(prompt, claims))

    def _by_preference(self, prompt: Prompt, devices: Iterable[Device]) -> list[Device]:
        """Devices with a free place in the batch: the one that has the prompt's pages, then the emptiest."""
        free = [device for device in devices if device.num_slots_free > 0]
        if len(free) <= 1:
            return free
        home = prompt.context.home
        available = self.store.num_available
        return sorted(free, key=lambda d: (d.pool_id != home, -available(d.pool_id), d.pool_id))

    # ------------------------------------------------------------------ turns

    def _slice_tokens(self, device: Device) -> int:
        """How many tokens a prompt may sample before others have their turn."""
        if device not in self._slice_lengths:
            self._slice_lengths[device] = self._measure_slice(device)
        return self._slice_lengths[device]

    def _measure_slice(self, device: Device) -> int:
        settings = self.settings
        floor_ns = max(settings.min_slice_ns, round(MIN_STEPS * device.step_ns))
        num_waiting = self.policy.num_queued() if self.policy.rotates else 0
        num_running = sum(len(each.running) for each in self.devices)
        length_ns = slice_length_ns(
            num_running=num_running,
            num_waiting=num_waiting,
            target_ns=settings.target_ns,
            floor_ns=floor_ns,
            cap_ns=max(floor_ns, settings.slice_ns),
            alone_ns=max(floor_ns, UNCONTENDED_NS),
        )
        num_tokens = max(1, round(length_ns / device.step_ns))
        return num_tokens if num_waiting else min(num_tokens, GRANT_PAGES * self.store.layout.page_tokens)

    def _end_position(self, prompt: Prompt, until: int) -> int:
        """Positions that a turn up to output token `until` may write."""
        return min(len(prompt.input_ids) + until, self.settings.max_model_len)

    def _start(self, prompt: Prompt, device: Device, num_claimed: int) -> bool:
        """Give the prompt a turn on this device, if its pages fit there and `num_claimed` pages are left to
        others."""
        sampled = len(prompt.output_ids)
        until = min(sampled + self._slice_tokens(device), prompt.sampling.max_tokens)
        context = prompt.context
        end = self._end_position(prompt, until)
        if not self._leaves_enough(prompt, device, end, num_claimed):
            return False
        moves = self.store.prepare(context, device.pool_id, end)
        if moves is None:
            return False
        slice_id = next(self._slice_ids)
        device.outbox.moves += moves
        device.outbox.slices.append(
            Slice(
                slice_id=slice_id,
                start=context.computed,
                ids=prompt.ids_from(context.computed),
                pages=context.slice_tables(),
                max_new=until - sampled,
                num_prompt=len(prompt.input_ids),
                sampling=prompt.sampling,
                history=prompt.ids_from(0)[: context.computed] if prompt.needs_history() else [],
                wait_moves=[move.move_id for move in moves],
            )
        )
        prompt.turn = Turn(device, slice_id, until, is_first=not prompt.has_first_token)
        device.running[prompt] = None
        device.by_slice[slice_id] = prompt
        return True

    def _leaves_enough(self, prompt: Prompt, device: Device, end: int, num_claimed: int) -> bool:
        """While others run, a started turn leaves some pages free for those turns to grow, and takes nothing
        of what will be there for the claims of others."""
        if not device.running:
            return True
        left = self.store.num_available(device.pool_id, besides=prompt.context)
        left -= self.store.pages_needed(prompt.context, device.pool_id, end)
        if num_claimed:
            left = min(left, left + self._pages_coming(device) - num_claimed)
        return left >= self._reserve(device)

    def _reserve(self, device: Device) -> int:
        """Pages kept free under contention. Who runs to completion makes way by recomputing instead."""
        if not self.policy.rotates:
            return 0
        return round(self.settings.reserve * self.store.local_pools[device.pool_id].num_usable)

    def _extend(self, prompt: Prompt) -> bool:
        """Queue the next slice of a running prompt behind the one it has."""
        turn = prompt.turn
        assert turn is not None
        if turn.is_ending or turn.next_id is not None:
            return False
        device = turn.device
        until = min(turn.until + self._slice_tokens(device), prompt.sampling.max_tokens)
        pages = self.store.extend(prompt.context, self._end_position(prompt, until))
        if pages is None:
            return False
        turn.next_id = next(self._slice_ids)
        extension = Extension(
            slice_id=turn.next_id, extends=turn.slice_id, pages=pages, max_new=until - turn.until
        )
        device.outbox.extensions.append(extension)
        device.by_slice[turn.next_id] = prompt
        turn.until = until
        return True

    def leave_device(self, prompt: Prompt, now_ns: int) -> None:
        """The runner has ended the prompt's turn, or is gone."""
        turn, prompt.turn = prompt.turn, None
        assert turn is not None
        device = turn.device
        del device.running[prompt]
        device.by_slice.pop(turn.slice_id, None)
        if turn.next_id is not None:
            device.by_slice.pop(turn.next_id, None)
        self._charge(prompt, now_ns)
        self.store.stop(prompt.context)

    def cancel(self, prompt: Prompt) -> None:
        """End the turn of a prompt that is gone. Its pages are its own until the runner has reported the
        end, which carries the id of whichever of its slices was in force."""
        turn, prompt.turn = prompt.turn, None
        assert turn is not None
        device = turn.device
        del device.running[prompt]
        for slice_id in filter(None, (turn.slice_id, turn.next_id)):
            device.by_slice.pop(slice_id, None)
            device.cancelled[slice_id] = prompt.context
            device.outbox.cancels.append(slice_id)

    # ------------------------------------------------------------------ preemption

    def _claim_room(self, prompt: Prompt, claims: dict[Device, int], now_ns: int) -> None:
        """End as many turns as a waiting prompt needs room, if it deserves their place, and keep that room
        for it. A prompt that is due deserves any, and keeps what is free even if nobody can make way yet."""
        is_due = self._is_due(prompt, now_ns)
        home = prompt.context.home
        device = min(claims, key=lambda d: (d.pool_id != home, len(d.running), d.pool_id))
        end = self._end_position(prompt, len(prompt.output_ids) + 1)
        needed = self.store.pages_needed(prompt.context, device.pool_id, end)
        available = self.store.num_available(device.pool_id, besides=prompt.context)
        short = needed + claims[device] + self._reserve(device) - available - self._pages_coming(device)
        needs_slot = device.num_slots_free == 0 and not self._is_anyone_ending(device)
        has_claim = is_due
        for victim in self._victims(device, now_ns) if short > 0 or needs_slot else ():
            if not is_due and not self.policy.preempts(prompt.task, victim.task, now_ns):
                continue
            self._end_turn(victim)
            has_claim, needs_slot = True, False
            short -= victim.context.num_local
            if short <= 0:
                break
        if has_claim:
            claims[device] += needed

    def _victims(self, device: Device, now_ns: int) -> list[Prompt]:
        """Prompts whose slice is nearly over, then those that had their minimum granularity in this turn;
        of either those first that were served most."""
        floor_ns = max(self.settings.min_slice_ns, round(MIN_STEPS * device.step_ns))
        victims = [prompt for prompt in device.running if self._may_be_ended(prompt, floor_ns, now_ns)]
        return sorted(victims, key=_most_served)

    def _may_be_ended(self, prompt: Prompt, floor_ns: int, now_ns: int) -> bool:
        """A turn lasts until its pages are there and it has made a step, the first one until its token."""
        turn = prompt.turn
        assert turn is not None
        if turn.is_ending or turn.first_ns is None:
            return False
        if turn.is_first and not prompt.has_first_token:
            return False
        return turn.is_expiring or now_ns - turn.first_ns >= floor_ns

    def _pages_coming(self, device: Device) -> int:
        """Pages of turns that are about to end, and of idle contexts that are being mirrored."""
        ending = sum(p.context.num_local for p in device.running if p.turn is not None and p.turn.is_ending)
        return ending + self.store.num_in_motion(device.pool_id)

    def _is_anyone_ending(self, device: Device) -> bool:
        return any(p.turn is not None and p.turn.is_ending for p in device.running)

    def _end_turn(self, prompt: Prompt) -> None:
        turn = prompt.turn
        assert turn is not None
        turn.is_ending = True
        turn.device.outbox.ends.append(turn.next_id if turn.next_id is not None else turn.slice_id)

    def _make_way(self, device: Device, now_ns: int) -> None:
        """A running prompt found no page to go on, and nobody waits whose turn it could be: under a policy
        that runs prompts to completion the youngest gives way; otherwise its slice simply ends."""
        if self.policy.rotates:
            return
        youngest = max(device.running, key=lambda p: p.task.serial)
        assert youngest.turn is not None
        if not youngest.turn.is_ending and not self._is_anyone_ending(device):
            self._end_turn(youngest)

    def _drop_if_stuck(self, devices: list[Device]) -> None:
        """Somebody found no room and none is coming: every tier is full. The youngest prompt that holds
        pages without running, and without a mirror, is dropped; it is recomputed at its turn."""
        if any(device.cancelled or self._pages_coming(device) for device in devices):
            return
        pools = {device.pool_id for device in devices}
        idle = [
            prompt
            for prompt in self.prompts.values()
            if prompt.context.home in pools and prompt.context.is_dirty and not prompt.context.is_running
        ]
        if idle:
            self.store.drop(max(idle, key=lambda p: p.task.serial).context)

    # ------------------------------------------------------------------ mirrors

    def _mirror_idle(self, device: Device) -> None:
        """Copy out all of what does not run, so that its pages can be had for free."""
        if not self.policy.recomputes:
            for context in self.store.idle_dirty(device.pool_id):
                device.outbox.moves += self.store.mirror(context, whole=True)

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
            if self.store.is_in_the_way(prompt.context) and self._may_be_ended(prompt, 0, now_ns):
                self._end_turn(prompt)

    def _reclaim(self, devices: list[Device]) -> None:
        """Go on emptying what lenders want back."""
        by_pool = {device.pool_id: device for device in devices}
        for pool_id, move in self.store.reclaim(list(by_pool)) if self.store.has_recalls else ():
            by_pool[pool_id].outbox.moves.append(move)

    def check_integrity(self) -> None:
        """Raise AssertionError if queues and turns contradict each other."""
        self.policy.check_integrity()
        for device in self.devices:
            for prompt in device.running:
                assert prompt.turn is not None
                assert prompt.turn.device is device
                assert prompt.context.is_running
                assert device.by_slice[prompt.turn.slice_id] is prompt
        for task, prompt in self.prompts.items():
            waits = prompt.turn is None or prompt.turn.is_expiring
            assert waits == (task.is_queued or self.gate.holds(task))


def _most_served(prompt: Prompt) -> tuple[bool, int, int]:
    assert prompt.turn is not None
    return not prompt.turn.is_expiring, -prompt.task.vruntime_ns, -prompt.task.serial
