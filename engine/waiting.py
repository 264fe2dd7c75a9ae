"""The prompts of a model that wait for a turn: what stands around the policy's queue, and who goes first."""

from engine.fairness.first_slices import FirstSliceGate
from engine.fairness.gap import GapQueue
from engine.fairness.patience import ElderQueue
from engine.fairness.policy import Policy, Task
from engine.fairness.reading import waits_since_ns
from engine.prompt import Prompt


class Waiting:
    """Rules on top of fair order: first slices are let in a few per tenant; who has waited longer than
    `gap_ns` for a token goes first of its tenant, then who has been here for longer than `patience_ns`. Maps
    the policy's tasks back to their prompts, waiting or not, and charges them."""

    def __init__(self, policy: Policy, *, gap_ns: int, patience_ns: int, first_slices: int) -> None:
        self.prompts: dict[Task, Prompt] = {}
        self.service_ns: dict[str, int] = {}  # by tenant
        self._policy = policy
        self._gap_ns = gap_ns
        self._gaps = GapQueue(gap_ns)
        self._elders = ElderQueue(patience_ns)
        self._gate = FirstSliceGate(first_slices)

    def enqueue(self, prompt: Prompt, now_ns: int) -> None:
        """A new prompt waits for its first slice: behind its tenant's gate, then in the fair queue."""
        self.prompts[prompt.task] = prompt
        if prompt.has_first_token or not self._policy.rotates or self._gate.enter(prompt.task):
            self._join(prompt, now_ns)

    def requeue(self, prompt: Prompt, now_ns: int) -> None:
        """A prompt whose turn is over, or nearly, waits for the next; it pays for what it had."""
        self.charge(prompt, now_ns)
        self.put_back(prompt, now_ns)

    def put_back(self, prompt: Prompt, now_ns: int) -> None:
        """A prompt that was taken by `next` waits on."""
        self._policy.put_back(prompt.task, now_ns)
        self._await_token(prompt)
        if self.is_elder(prompt, now_ns):
            self._elders.add(prompt.task)

    def forget(self, prompt: Prompt, now_ns: int) -> None:
        """The prompt is finished or aborted."""
        self.charge(prompt, now_ns)
        self._gaps.discard(prompt.task)
        self._elders.discard(prompt.task)
        if not self._gate.holds(prompt.task):
            self._policy.leave(prompt.task, now_ns)
        self.pass_gate(prompt, now_ns)
        del self.prompts[prompt.task]

    def pass_gate(self, prompt: Prompt, now_ns: int) -> None:
        """The prompt's first slice has done its duty; the next of its tenant may enter."""
        for task in self._gate.leave(prompt.task):
            self._join(self.prompts[task], now_ns)

    def charge(self, prompt: Prompt, now_ns: int) -> None:
        """Have the prompt pay for the GPU time that it has used and not been charged for."""
        used_ns, prompt.uncharged_ns = prompt.uncharged_ns, 0
        if used_ns:
            tenant = prompt.task.tenant
            self.service_ns[tenant] = self.service_ns.get(tenant, 0) + used_ns
            self._policy.charge(prompt.task, used_ns, now_ns)

    def next(self, now_ns: int) -> Prompt | None:
        """The prompt that should run next, taken out of the queue: of the tenant that the policy chooses,
        one that has waited too long for a token, or else one that has been here for too long, or else the
        policy's choice."""
        policy = self._policy
        if not policy.rotates:
            task = policy.pick(now_ns)
            return None if task is None else self.prompts[task]
        tenant = policy.next_tenant(now_ns)
        if tenant is None:
            return None
        task = self._gaps.take_overdue(tenant, now_ns)
        if task is not None:
            policy.take(task, now_ns)
            self._elders.discard(task)
        elif (task := self._elders.take(tenant)) is not None:
            policy.take(task, now_ns)
            self._gaps.discard(task)
        else:
            task = policy.pick(now_ns)
            assert task is not None
            self._gaps.discard(task)
        return self.prompts[task]

    def take(self, prompt: Prompt, now_ns: int) -> None:
        """Take this very prompt out of the queue, whoever should run next."""
        self._policy.take(prompt.task, now_ns)
        self._gaps.discard(prompt.task)
        self._elders.discard(prompt.task)

    def is_due(self, prompt: Prompt, now_ns: int) -> bool:
        """Whether it has waited longer than the bound."""
        return self._gaps.is_overdue(self._waits_since(prompt), now_ns)

    def is_elder(self, prompt: Prompt, now_ns: int) -> bool:
        """Whether it goes before younger ones of its tenant; nobody does before its first token, which comes
        first anyway."""
        return prompt.has_first_token and self._policy.rotates and self._elders.is_elder(prompt.task, now_ns)

    def deserves_place(self, prompt: Prompt, victim: Prompt, now_ns: int) -> bool:
        """Whether a waiting prompt that is not due may have the place of one that runs: of its own tenant's
        the elder, or else as the policy says."""
        if prompt.task.tenant == victim.task.tenant:
            if victim.arrival_ns <= prompt.arrival_ns:
                if self.is_elder(victim, now_ns):
                    return False
            elif self.is_elder(prompt, now_ns):
                return True
        return self._policy.preempts(prompt.task, victim.task, now_ns)

    def _join(self, prompt: Prompt, now_ns: int) -> None:
        self._policy.join(prompt.task, now_ns)
        self._await_token(prompt)

    def _await_token(self, prompt: Prompt) -> None:
        if self._policy.rotates:
            self._gaps.add(prompt.task, self._waits_since(prompt))

    def _waits_since(self, prompt: Prompt) -> int:
        """The time that a prompt's gap counts from. One that waits for its first token is due at once, before
        all that are overdue by less than half the bound: so it is soon served, and a stream of newcomers
        delays nobody for longer."""
        if not prompt.output_ids:
            return prompt.arrival_ns - self._gap_ns * 3 // 2
        if prompt.tokens_per_s is None or prompt.first_token_ns is None:
            return prompt.last_token_ns
        return waits_since_ns(
            tokens_per_s=prompt.tokens_per_s,
            first_token_ns=prompt.first_token_ns,
            last_token_ns=prompt.last_token_ns,
            num_tokens=prompt.num_sampled,
            gap_ns=self._gap_ns,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if queues and turns contradict each other."""
        self._policy.check_integrity()
        self._elders.check_integrity()
        for task, prompt in self.prompts.items():
            waits = prompt.turn is None or prompt.turn.is_expiring
            assert waits == (task.is_queued or self._gate.holds(task))
