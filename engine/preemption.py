"""Who has to make way for whom: turns that are ended, and room that is kept for those who wait."""

from engine.device import Device
from engine.devices import Devices
from engine.dropped import Dropped
from engine.fairness.policy import Policy
from engine.memory.store import ContextStore
from engine.prompt import Prompt
from engine.turns import Turns
from engine.waiting import Waiting


class Preemption:
    """`claims` are the pages that prompts who wait have laid claim to in the plan being made, by device."""

    def __init__(
        self, policy: Policy, store: ContextStore, waiting: Waiting, turns: Turns, devices: Devices
    ) -> None:
        self.claims: dict[Device, int] = {}
        self.dropped = Dropped(devices)
        self._policy = policy
        self._store = store
        self._waiting = waiting
        self._turns = turns
        self._devices = devices
        self._victims: dict[Device, list[Prompt]] = {}  # who may be ended in the plan being made
        self._refused: set[tuple[Device, str]] = set()  # tenants of which one deserved nobody's place in it
        self._unsettled: set[Device] = set()  # found so in it

    def begin_plan(self) -> None:
        """Nobody has claimed anything yet."""
        self.claims.clear()
        self.dropped.begin_plan()
        self._victims.clear()
        self._refused.clear()
        self._unsettled.clear()

    def is_settled(self, device: Device, now_ns: int) -> bool:
        """Whether all turns on a device just go on in the plan being made, or end, whoever waits."""
        if device in self._unsettled:
            return False
        for prompt in device.running:
            turn = prompt.turn
            assert turn is not None
            if not turn.is_ending and (turn.is_expiring or self.may_make_way(prompt, now_ns)):
                self._unsettled.add(device)
                return False
        return True

    def spare_pages(self, device: Device) -> int:
        """Pages that a turn started now has to leave: a reserve for turns to grow, while there are some, and
        what is claimed and will not come back by itself."""
        if not device.running:
            return 0
        spare = self._devices.reserve_pages(device)
        claimed = self.claims.get(device)
        return spare + max(0, claimed - self._pages_coming(device)) if claimed else spare

    def claim_room(self, prompt: Prompt, now_ns: int) -> None:
        """End as many turns as a waiting prompt needs room, if it deserves their place, and keep that room
        for it. A prompt that is due deserves any, and keeps what is free even if nobody can make way yet.
        Where one was refused, those of its tenant that come after it in fair order need not ask."""
        device = self._device_for(prompt)
        if device is None:
            return  # until one comes that can hold it
        is_full = device.num_slots_free == 0
        if is_full and not self._victims_on(device, now_ns):
            return  # nobody starts there in this plan, whatever is claimed
        is_due, tenant = self._waiting.is_due(prompt, now_ns), prompt.task.tenant
        if not is_due and (device, tenant) in self._refused:
            return
        needed = self._turns.least_pages(prompt, device)
        short = needed + self.claims.get(device, 0) + self._devices.reserve_pages(device)
        short -= self._store.num_available(device.pool_id, besides=prompt.context)
        short -= self._pages_coming(device)
        needs_slot = is_full and not device.ending
        has_claim = is_due
        for victim in self._victims_on(device, now_ns)[:] if short > 0 or needs_slot else ():
            if not is_due and not self._waiting.deserves_place(prompt, victim, now_ns):
                continue
            self._turns.end(victim)
            self._victims[device].remove(victim)
            has_claim, needs_slot = True, False
            short -= victim.context.num_local
            if short <= 0:
                break
        if has_claim:
            self.claims[device] = self.claims.get(device, 0) + needed
        elif short > 0 or needs_slot:
            self._refused.add((device, tenant))

    def _device_for(self, prompt: Prompt) -> Device | None:
        """Where a waiting prompt has its pages, or else where the fewest run; None if none can hold it."""
        device = self._devices.home_of(prompt.context) or self._devices.least_busy()
        if device is None or device.can_hold(prompt):
            return device
        return self._devices.least_busy_for(prompt)

    def extended(self, device: Device) -> None:
        """A turn there goes on that was nearly over."""
        self._victims.pop(device, None)

    def make_way(self, device: Device) -> None:
        """A running prompt found no page to go on, and nobody waits whose turn it could be: under a policy
        that runs prompts to completion the youngest gives way; otherwise its slice simply ends."""
        if not self._policy.rotates and not device.ending:
            self._turns.end(max(device.running, key=lambda prompt: prompt.task.serial))

    def drop_if_stuck(self) -> bool:
        """Somebody found no room and none is coming: every tier is full. The youngest prompt that holds
        pages without running, and without a mirror, is dropped; it is recomputed at its turn. False if none
        was."""
        up = self._devices.up
        if up.keys().isdisjoint(self._store.dirty_pools):
            return False
        if any(device.cancelled or self._pages_coming(device) for device in up.values()):
            return False
        idle = [
            prompt
            for prompt in self._waiting.prompts.values()
            if not prompt.context.is_running and prompt.context.would_be_lost(up)
        ]
        if idle:
            youngest = max(idle, key=lambda prompt: prompt.task.serial)
            self.dropped.add(youngest)
            context = youngest.context
            if context.is_dirty:
                self._store.drop(context)
            else:
                self._store.forget(context)
        return bool(idle)

    def may_be_ended(self, prompt: Prompt) -> bool:
        """A turn lasts until its pages are there and it has made a step, the first one until its token."""
        turn = prompt.turn
        assert turn is not None
        if turn.is_ending or turn.old_ns is None:
            return False
        return not turn.is_first or prompt.has_first_token

    def may_make_way(self, prompt: Prompt, now_ns: int) -> bool:
        """A turn that others have the place of has lasted for the least time, as that was when it began, or
        is nearly over."""
        turn = prompt.turn
        assert turn is not None
        is_old = turn.old_ns is not None and turn.old_ns <= now_ns
        return (is_old or turn.is_expiring) and self.may_be_ended(prompt)

    def _victims_on(self, device: Device, now_ns: int) -> list[Prompt]:
        """Prompts whose slice is nearly over, then those that had their minimum granularity in this turn;
        of either those first that were served most. Nobody is charged in the course of a plan."""
        able = self._victims.get(device)
        if able is None:
            able = [prompt for prompt in device.running if self.may_make_way(prompt, now_ns)]
            able.sort(key=_last_to_go_on)
            self._victims[device] = able
        return able

    def _pages_coming(self, device: Device) -> int:
        """Pages of turns that are about to end, and of idle contexts that are being mirrored."""
        coming = self._store.num_in_motion(device.pool_id)
        for prompt in device.ending:
            coming += prompt.context.num_local
        return coming


def _last_to_go_on(prompt: Prompt) -> tuple[bool, int, int]:
    turn, task = prompt.turn, prompt.task
    assert turn is not None
    return not turn.is_expiring, -task.vruntime_ns, -task.serial
