"""Turns of prompts on devices: begun, extended slice by slice, ended, cancelled."""

from itertools import count

from engine.device import Device
from engine.devices import Devices
from engine.fairness.policy import Policy
from engine.fairness.slice_length import slice_length_ns
from engine.memory.context import Context
from engine.memory.store import ContextStore
from engine.messages import Extension, Move, Slice
from engine.prefix_sharing import PrefixSharing
from engine.prompt import Prompt, Turn
from engine.room_wanted import RoomWanted

MIN_STEPS = 4  # a slice is worth at least so many steps: switching costs about one
GRANT_PAGES = 2  # when nobody waits, a slice is a grant of so many pages: more would only lie unused
UNCONTENDED_NS = 250_000_000  # slices when nobody waits: only a grant of pages, which an arrival cuts short


class Turns:
    """Writes slices, extensions and ends into the devices' outboxes, with the pages that they need.

    `target_ns`, `slice_ns` and `min_slice_ns` are what slices are measured by (`slice_length`), and no
    context grows beyond `max_model_len`.
    """

    def __init__(
        self,
        policy: Policy,
        store: ContextStore,
        prefixes: PrefixSharing,
        devices: Devices,
        *,
        target_ns: int,
        slice_ns: int,
        min_slice_ns: int,
        max_model_len: int,
    ) -> None:
        self._policy = policy
        self._store = store
        self._prefixes = prefixes
        self._devices = devices
        self._target_ns = target_ns
        self._slice_ns = slice_ns
        self._min_slice_ns = min_slice_ns
        self._max_model_len = max_model_len
        self._slice_ids = count(1)
        self._slice_tokens: dict[Device, int] = {}  # of the plan being made
        self._num_at_once = 0  # prompts that ran when it began
        self._num_refused: int | None = None  # prompts that waited when one first found no room anywhere
        self.room_wanted = RoomWanted(store)

    # ------------------------------------------------------------------ measures

    def begin_plan(self) -> None:
        """Slices are measured once per plan and device, by what runs and waits when one is first tried."""
        self._slice_tokens.clear()
        self._num_at_once = self._devices.num_running
        self._num_refused = None
        self.room_wanted.begin_plan()

    def refuse(self, num_pages: int) -> None:
        """A prompt found no room on any device, `num_pages` beside the reserve: it counts as a try on all
        that have a free place."""
        if not self._devices.are_all_full:
            self.room_wanted.refuse_everywhere(num_pages)
        if self._num_refused is None and self._policy.rotates:
            self._num_refused = self._policy.num_queued()

    def floor_ns(self, device: Device) -> int:
        """The least that a turn should last."""
        return max(self._min_slice_ns, round(MIN_STEPS * device.step_ns))

    def end_position(self, prompt: Prompt, until: int) -> int:
        """Positions that a turn up to output token `until` may write."""
        end = len(prompt.input_ids) + until
        return end if end < self._max_model_len else self._max_model_len

    def is_nearly_used_up(self, prompt: Prompt) -> bool:
        """Whether the prompt's next slice is due to be planned."""
        turn = prompt.turn
        assert turn is not None
        if turn.until - len(prompt.output_ids) > turn.device.lookahead_steps:
            return False
        return not turn.is_ending and turn.next_id is None and turn.until < prompt.sampling.max_tokens

    def _measure_slice(self, device: Device) -> int:
        """How many tokens a prompt may sample before others have their turn."""
        floor_ns = self.floor_ns(device)
        num_waiting = self._policy.num_queued() if self._policy.rotates else 0
        if self._num_refused is not None and device.num_slots_free > 0:
            num_waiting = self._num_refused
        length_ns = slice_length_ns(
            num_running=self._num_at_once,
            num_waiting=num_waiting,
            target_ns=self._target_ns,
            floor_ns=floor_ns,
            cap_ns=max(floor_ns, self._slice_ns),
            alone_ns=max(floor_ns, UNCONTENDED_NS),
        )
        num_tokens = max(1, round(length_ns / device.step_ns))
        if not num_waiting:
            num_tokens = min(num_tokens, GRANT_PAGES * self._store.layout.page_tokens)
        self._slice_tokens[device] = num_tokens
        return num_tokens

    def _until(self, prompt: Prompt, device: Device, start: int, most_tokens: int | None = None) -> int:
        """The output token up to which a slice from output token `start` lasts."""
        tokens = self._slice_tokens.get(device) or self._measure_slice(device)
        latency_ns = prompt.task.latency_ns
        if latency_ns is not None and self._policy.grants_wishes:
            tokens = min(tokens, max(MIN_STEPS, round(latency_ns / device.step_ns)))
        if most_tokens is not None:
            tokens = min(tokens, max(most_tokens, round(self.floor_ns(device) / device.step_ns)))
        until, most = start + tokens, prompt.sampling.max_tokens
        room = device.max_context_tokens - len(prompt.input_ids)
        if most > room:
            most = room
        return until if until < most else most

    # ------------------------------------------------------------------ turns

    def least_pages(self, prompt: Prompt, device: Device) -> int:
        """Pages that the prompt lacks there to get one token more."""
        end = self.end_position(prompt, len(prompt.output_ids) + 1)
        return self._store.pages_needed(prompt.context, device.pool_id, end)

    def start(self, prompt: Prompt, device: Device, spare: int, most_tokens: int | None) -> bool:
        """Give the prompt a turn on this device, if its pages fit there and `spare` pages are left for turns
        that run to grow, and for those who have claimed them. `most_tokens`: its slice is no longer, if that
        is worth a switch."""
        sampled = len(prompt.output_ids)
        until = self._until(prompt, device, sampled, most_tokens)
        end = self.end_position(prompt, until)
        if prompt.context.node is not None and not self._may_have_room(prompt.context, device, end, spare):
            return False
        moves = self._prepare(prompt, device, end, spare)
        if moves is None:
            return False
        context = prompt.context
        slice_id = next(self._slice_ids)
        start = context.computed
        outbox = device.outbox
        outbox.moves += moves
        outbox.slices.append(
            Slice(
                slice_id=slice_id,
                start=start,
                ids=prompt.ids_from(start),
                pages=context.slice_tables(),
                max_new=until - sampled,
                num_prompt=len(prompt.input_ids),
                sampling=prompt.sampling,
                history=prompt.ids_from(0)[:start] if start and prompt.needs_history() else [],
                wait_moves=self._store.awaited(context),
                in_parts=self._policy.num_queued_of(prompt.task.tenant) > 0,
            )
        )
        prompt.turn = Turn(device, slice_id, until, is_first=not sampled)
        device.by_slice[slice_id] = prompt
        self._devices.begin_turn(device, prompt)
        return True

    def _may_have_room(self, context: Context, device: Device, end: int, spare: int) -> bool:
        """Whether a context may find room there: under contention most do not, and to see that takes less
        than to try. What one shares that is in no index yet is found out by trying."""
        num_pages = self._store.pages_needed(context, device.pool_id, end)
        if self._store.has_room(context, device.pool_id, num_pages, spare=spare):
            return True
        self.room_wanted.refuse(device, context, num_pages, spare)
        return False

    def _prepare(self, prompt: Prompt, device: Device, end: int, spare: int) -> list[Move] | None:
        """Have pages for the prompt up to position `end`, those that are cached among them; None if there is
        no room."""
        has_joined = prompt.context.node is None and self._prefixes.join(prompt, device)
        moves = self._store.prepare(prompt.context, device.pool_id, end, spare=spare)
        if moves is not None:
            if not prompt.has_started:
                self._prefixes.count(prompt)
            return moves
        needed = self._store.pages_needed(prompt.context, device.pool_id, end)
        self.room_wanted.refuse(device, prompt.context, needed, spare)
        if has_joined:
            self._prefixes.part(prompt)
        return None

    def extend(self, prompt: Prompt) -> bool:
        """Queue the next slice of a running prompt behind the one it has."""
        turn = prompt.turn
        assert turn is not None
        if turn.is_ending or turn.next_id is not None:
            return False
        device = turn.device
        until = self._until(prompt, device, turn.until)
        if until <= turn.until:
            return False  # it goes on where there is room for longer contexts
        pages = self._store.extend(prompt.context, self.end_position(prompt, until))
        if pages is None:
            self.room_wanted.refuse_growth(device)
            return False
        turn.next_id = next(self._slice_ids)
        device.outbox.extensions.append(
            Extension(slice_id=turn.next_id, extends=turn.slice_id, pages=pages, max_new=until - turn.until)
        )
        device.by_slice[turn.next_id] = prompt
        turn.until = until
        self._devices.touch(device)
        return True

    def end(self, prompt: Prompt) -> None:
        """Have the runner end the turn at the next step boundary."""
        turn = prompt.turn
        assert turn is not None
        assert not turn.is_ending
        turn.is_ending = True
        turn.device.ending[prompt] = None
        turn.device.outbox.ends.append(turn.next_id if turn.next_id is not None else turn.slice_id)
        self._devices.touch(turn.device)

    def leave(self, prompt: Prompt) -> None:
        """The runner has ended the prompt's turn, or is gone."""
        turn = self._take_turn(prompt)
        turn.device.by_slice.pop(turn.slice_id, None)
        if turn.next_id is not None:
            turn.device.by_slice.pop(turn.next_id, None)
        self._store.stop(prompt.context)

    def cancel(self, prompt: Prompt) -> None:
        """End the turn of a prompt that is gone. Its pages are its own until the runner has reported the
        end, which carries the id of whichever of its slices was in force."""
        turn = self._take_turn(prompt)
        device = turn.device
        for slice_id in filter(None, (turn.slice_id, turn.next_id)):
            device.by_slice.pop(slice_id, None)
            device.cancelled[slice_id] = prompt.context
            device.outbox.cancels.append(slice_id)

    def _take_turn(self, prompt: Prompt) -> Turn:
        turn, prompt.turn = prompt.turn, None
        assert turn is not None
        turn.device.ending.pop(prompt, None)
        self._devices.end_turn(turn.device, prompt)
        return turn
