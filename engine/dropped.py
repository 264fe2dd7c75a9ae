"""Prompts whose contexts were dropped because every tier was full, and those that wait for them."""

from collections.abc import Iterable

from engine.prompt import Prompt


class Dropped:
    """Keeps new prompts from starting while others wait to have their contexts recomputed.

    A context that comes back takes the room of another one, which is dropped in its turn: with more contexts
    than there is room for, most of the work is done again and again. So no prompt begins one more while one
    that was dropped has not come back, and those that have begun get done. A tenant that has begun nothing is
    not held back: it is not its contexts that are too many.
    """

    def __init__(self) -> None:
        self._prompts: set[Prompt] = set()
        self._tenants: set[str] | None = None  # that have begun something, in the plan being made

    def begin_plan(self) -> None:
        """Who runs or has ended is back."""
        self._tenants = None
        if self._prompts:
            self._prompts = {p for p in self._prompts if p.turn is None and p.finish is None}

    def add(self, prompt: Prompt) -> None:
        """The prompt's context was dropped."""
        self._prompts.add(prompt)

    def hold_back(self, prompt: Prompt, prompts: Iterable[Prompt]) -> bool:
        """Whether a prompt that could start now, one of these `prompts`, must not."""
        if not self._prompts or prompt.turn is not None or prompt.context.computed:
            return False
        if prompt in self._prompts:
            return False
        if self._tenants is None:
            self._tenants = {p.task.tenant for p in prompts if p.context.computed or p in self._prompts}
        has_begun = prompt.task.tenant in self._tenants
        self._tenants.add(prompt.task.tenant)  # at least it tries to
        return has_begun
