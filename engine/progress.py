"""What steps did for the prompts in them: positions computed, tokens sampled, GPU time to pay for."""

from bisect import insort
from dataclasses import dataclass, field
from operator import itemgetter

from engine.device import Device
from engine.fairness.charging import share
from engine.fairness.policy import Policy
from engine.messages import Step
from engine.planner import Planner
from engine.prompt import Prompt, Turn
from engine.slice_log import SliceLog


@dataclass(slots=True)
class SchedulerCounters:
    """Totals since the start."""

    admitted: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # by finish reason
    prompt_tokens: int = 0
    output_tokens: int = 0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    slices: int = 0
    plans: int = 0
    wait_ns: int = 0  # compute stood still for a move
    runners_lost: int = 0
    longest_gap_ns: int = 0


class Progress:
    """Enters reported steps into the books of their prompts. This is the engine's work for every token, so it
    does no more for a row than the row needs."""

    def __init__(self, policy: Policy, planner: Planner, slice_log: SliceLog) -> None:
        self.counters = SchedulerCounters()
        self.with_news: dict[Prompt, None] = {}  # with tokens, or an end, that its api was not sent
        self._policy = policy
        self._counts_tokens = policy.counts_tokens
        self._planner = planner
        self.slice_log = slice_log

    def take(self, device: Device, step: Step, now_ns: int) -> bool:
        """Enter a step. Returns whether a plan is due: if a slice is nearly used up, or if what others wait
        for may be there."""
        device.observe_step(step.step_ns, step.idle_ns, is_decode=sum(step.fed) == len(step.fed))
        is_plan_due = self._take_rows(device, step, now_ns)
        if step.logprobs or step.prompt_logprobs:
            self._keep_logprobs(device, step)
        return self._may_turns_be_ended(device, now_ns) or is_plan_due

    def _take_rows(self, device: Device, step: Step, now_ns: int) -> bool:
        planner, by_slice, with_news = self._planner, device.by_slice, self.with_news
        mirror_tokens, lookahead_steps = planner.mirror_tokens, device.lookahead_steps
        num_fed = num_sampled = 0
        is_plan_due = False
        shares = share(step.step_ns, step.fed, step.computed, step.tokens, device.cost)
        rows = zip(step.slice_ids, step.fed, step.computed, step.tokens, shares, strict=True)
        for slice_id, fed, computed, token, share_ns in rows:
            prompt = by_slice.get(slice_id)
            if prompt is None:
                continue  # cancelled
            turn, context, output_ids = prompt.turn, prompt.context, prompt.output_ids
            assert turn is not None
            prompt.uncharged_ns += share_ns
            num_fed += fed
            context.computed = computed
            if computed - fed == prompt.peak_computed:
                prompt.peak_computed = computed
            else:
                self._count_recomputed(prompt, computed - fed, computed)
            if turn.old_ns is None or slice_id == turn.next_id:
                self._begin_slice(prompt, turn, slice_id, fed, now_ns - step.step_ns, now_ns)
            if mirror_tokens is not None and computed - context.mirror_target >= mirror_tokens:
                planner.devices.touch(device)  # there is something to be copied out
            if token is None:
                is_plan_due |= planner.num_deferred > 0  # what they wait for may be computed
                continue
            if prompt.first_token_ns is None or now_ns - prompt.last_token_ns > prompt.longest_gap_ns:
                is_plan_due |= self._note_gap(prompt, now_ns)
            num_sampled += 1
            output_ids.append(token)
            prompt.last_token_ns = now_ns
            with_news[prompt] = None
            if self._counts_tokens:
                self._policy.charge_tokens(prompt.task, 1, now_ns)
            if turn.until - len(output_ids) <= lookahead_steps and self._is_nearly_over(prompt, turn):
                planner.devices.touch(device)
                is_plan_due = True
        self.counters.computed_tokens += num_fed
        self.counters.output_tokens += num_sampled
        return is_plan_due

    def _is_nearly_over(self, prompt: Prompt, turn: Turn) -> bool:
        """Whether the prompt's slice is, and nothing has been done about it."""
        return not turn.is_expiring and self._planner.turns.is_nearly_used_up(prompt)

    def _note_gap(self, prompt: Prompt, now_ns: int) -> bool:
        """A token comes that is the first, or later after the one before than any yet. Returns whether that
        is a reason to plan."""
        if prompt.output_ids:
            prompt.longest_gap_ns = max(prompt.longest_gap_ns, now_ns - prompt.last_token_ns)
            self.counters.longest_gap_ns = max(self.counters.longest_gap_ns, prompt.longest_gap_ns)
        if prompt.first_token_ns is not None:
            return False
        prompt.first_token_ns = now_ns
        if prompt.output_ids:
            return False  # it has come back
        self._planner.waiting.pass_gate(prompt, now_ns)
        self.slice_log.first_token(prompt, now_ns)
        # others may be let in, or find its prompt computed, or have its place
        return self._policy.num_queued() > 0 or self._planner.num_deferred > 0

    def _may_turns_be_ended(self, device: Device, now_ns: int) -> bool:
        """Whether turns there have had the least time since the step before, and others wait."""
        young = device.young
        may_be = False
        while young and young[0][0] <= now_ns:
            may_be |= not young.popleft()[1].is_ending
        return may_be and self._policy.rotates and self._policy.num_queued() > 0

    def _count_recomputed(self, prompt: Prompt, start: int, computed: int) -> None:
        """A step did not go on where the prompt was when it had come furthest."""
        peak = prompt.peak_computed
        if start < peak:
            self.counters.recomputed_tokens += min(peak, computed) - start
        prompt.peak_computed = max(peak, computed)

    def _begin_slice(
        self, prompt: Prompt, turn: Turn, slice_id: int, fed: int, start_ns: int, now_ns: int
    ) -> None:
        """The step was the first of a turn, or the first of the slice that was queued behind another."""
        device = turn.device
        if turn.old_ns is None:
            turn.old_ns = now_ns + self._planner.turns.floor_ns(device)
            insort(device.young, (turn.old_ns, turn), key=itemgetter(0))
            self.slice_log.begin(prompt, device.name, start_ns, fed)
        if slice_id == turn.next_id:
            device.by_slice.pop(turn.slice_id)
            turn.slice_id, turn.next_id = slice_id, None
            self.slice_log.extend(prompt, now_ns, fed)

    def _keep_logprobs(self, device: Device, step: Step) -> None:
        for row in step.logprobs.keys() | step.prompt_logprobs.keys():
            prompt = device.by_slice.get(step.slice_ids[row])
            if prompt is not None:
                start = step.computed[row] - step.fed[row]
                prompt.take_logprobs(start, step.logprobs.get(row), step.prompt_logprobs.get(row))
