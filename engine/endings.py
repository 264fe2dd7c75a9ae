"""How turns and prompts end: over, preempted, begun anew, finished."""

from engine.fairness.policy import Policy
from engine.memory.store import ContextStore
from engine.messages import FinishReason, SliceFate
from engine.planner import Planner
from engine.progress import Progress
from engine.prompt import Prompt
from engine.slice_log import SliceLog


class Endings:
    """Takes prompts from their devices, and from `prompts`, those of the model by id."""

    def __init__(
        self,
        policy: Policy,
        store: ContextStore,
        planner: Planner,
        progress: Progress,
        slice_log: SliceLog,
        prompts: dict[str, Prompt],
    ) -> None:
        self._policy = policy
        self._store = store
        self._planner = planner
        self._counters = progress.counters
        self._with_news = progress.with_news
        self._slice_log = slice_log
        self._prompts = prompts

    def leave(self, prompt: Prompt, now_ns: int) -> None:
        """The prompt's turn is over and it is not finished: it waits for the next."""
        assert prompt.turn is not None
        is_queued = prompt.turn.is_expiring
        self._slice_log.end(prompt, SliceFate.PREEMPTED, now_ns)
        self._planner.num_preemptions += 1
        prompt.num_preemptions += 1
        self._planner.leave_device(prompt, now_ns)
        if self._policy.recomputes:
            self._give_up_context(prompt)
        if not is_queued:
            self._planner.waiting.requeue(prompt, now_ns)

    def start_over(self, prompt: Prompt, now_ns: int) -> None:
        """Recompute the prompt from its tokens. Whatever its runner still reports of the turn is ignored."""
        if prompt.turn is not None:
            is_queued = prompt.turn.is_expiring
            self._slice_log.end(prompt, SliceFate.PREEMPTED, now_ns)
            self._planner.turns.cancel(prompt)
            if not is_queued:
                self._planner.waiting.requeue(prompt, now_ns)
        self._store.close(prompt.context)
        prompt.context = self._store.open()

    def finish(self, prompt: Prompt, reason: FinishReason, now_ns: int) -> None:
        """End the prompt for good, wherever it is. An aborted one has nobody to tell."""
        if prompt.finish is not None:
            return
        prompt.finish = reason
        self._slice_log.end(prompt, SliceFate(reason), now_ns)
        self._counters.finished[reason] = self._counters.finished.get(reason, 0) + 1
        if prompt.turn is not None:
            self._planner.turns.cancel(prompt)
        self._planner.waiting.forget(prompt, now_ns)
        if reason is FinishReason.ERROR:
            self._store.close(prompt.context)
        else:
            self._planner.prefixes.retire(prompt)
        if reason is FinishReason.ABORT:
            self.forget(prompt)
        else:
            self._with_news[prompt] = None

    def forget(self, prompt: Prompt) -> None:
        """Nobody wants to hear of the prompt any more."""
        self._with_news.pop(prompt, None)
        del self._prompts[prompt.prompt_id]

    def _give_up_context(self, prompt: Prompt) -> None:
        """Whoever comes next may have the room of a prompt that will recompute its context, unless that is
        still there at its turn."""
        if self._store.shares_prefixes:
            self._planner.prefixes.retire(prompt)
            prompt.context = self._store.open()
        else:
            self._store.drop(prompt.context)
