"""What steps did for the prompts in them: positions computed, tokens sampled, GPU time to pay for."""

from dataclasses import dataclass, field

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
        self._planner = planner
        self.slice_log = slice_log

    def take(self, device: Device, step: Step, now_ns: int, *, is_plan_due: bool) -> bool:
        """Enter a step. Returns whether a plan is due: if it was, or if a slice is nearly used up, or if what
        others wait for may be there."""
        shares = share(step.step_ns, step.fed, step.computed, step.tokens, device.cost)
        is_decode = sum(step.fed) == len(step.fed)
        device.observe_step(step.step_ns, step.idle_ns, is_decode=is_decode)
        by_slice, turns = device.by_slice, self._planner.turns
        rows = zip(step.slice_ids, step.fed, step.computed, step.tokens, shares, strict=True)
        for slice_id, fed, computed, token, share_ns in rows:
            prompt = by_slice.get(slice_id)
            if prompt is None:
                continue  # cancelled
            turn = prompt.turn
            assert turn is not None
            prompt.uncharged_ns += share_ns
            self._count_computed(prompt, fed, computed)
            if turn.first_ns is None or slice_id == turn.next_id:
                self._begin_slice(prompt, turn, slice_id, fed, now_ns - step.step_ns, now_ns)
            if token is None:
                is_plan_due |= self._planner.num_deferred > 0  # what they wait for may be computed
                continue
            if not prompt.output_ids:
                self._planner.waiting.pass_gate(prompt, now_ns)
                self.slice_log.first_token(prompt, now_ns)
                is_plan_due = True
            self._add_token(prompt, token, now_ns)
            is_plan_due = is_plan_due or turns.is_nearly_used_up(prompt)
        if step.logprobs or step.prompt_logprobs:
            self._keep_logprobs(device, step)
        return is_plan_due

    def _count_computed(self, prompt: Prompt, fed: int, computed: int) -> None:
        peak, start = prompt.peak_computed, computed - fed
        if computed > peak:
            prompt.peak_computed = computed
        if start < peak:
            self.counters.recomputed_tokens += min(peak, computed) - start
        prompt.context.computed = computed
        self.counters.computed_tokens += fed

    def _begin_slice(
        self, prompt: Prompt, turn: Turn, slice_id: int, fed: int, start_ns: int, now_ns: int
    ) -> None:
        """The step was the first of a turn, or the first of the slice that was queued behind another."""
        device = turn.device
        if turn.first_ns is None:
            turn.first_ns = now_ns
            self.slice_log.begin(prompt, device.name, start_ns, fed)
        if slice_id == turn.next_id:
            device.by_slice.pop(turn.slice_id)
            turn.slice_id, turn.next_id = slice_id, None
            self.slice_log.extend(prompt, now_ns, fed)

    def _add_token(self, prompt: Prompt, token: int, now_ns: int) -> None:
        counters = self.counters
        if prompt.output_ids:
            gap_ns = now_ns - prompt.last_token_ns
            if gap_ns > prompt.longest_gap_ns:
                prompt.longest_gap_ns = gap_ns
                counters.longest_gap_ns = max(counters.longest_gap_ns, gap_ns)
        if prompt.first_token_ns is None:
            prompt.first_token_ns = now_ns
        prompt.output_ids.append(token)
        prompt.last_token_ns = now_ns
        counters.output_tokens += 1
        self._policy.charge_tokens(prompt.task, 1, now_ns)
        self.with_news[prompt] = None

    def _keep_logprobs(self, device: Device, step: Step) -> None:
        for row in step.logprobs.keys() | step.prompt_logprobs.keys():
            prompt = device.by_slice.get(step.slice_ids[row])
            if prompt is not None:
                start = step.computed[row] - step.fed[row]
                prompt.take_logprobs(start, step.logprobs.get(row), step.prompt_logprobs.get(row))
