"""Prompts whose contexts were dropped because every tier was full, and those that wait for them."""

from collections.abc import Iterable

from engine.devices import Devices
from engine.prompt import Prompt


class Dropped:
    """Keeps new prompts from starting while others wait to have their contexts recomputed.

    A context that comes back takes the room of another one, which is dropped in its turn: with more contexts
    than there is room for, most of the work is done again and again. So no prompt begins one more while one
    that was dropped has not come back, and those that have begun get done. A tenant that has begun nothing is
    not held back: it is not its contexts that are too many. Nor is anybody for the sake of a prompt that no
    device can hold which is up.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._prompts: set[Prompt] = set()
        self.awaited: set[Prompt] = set()  # of those, who can come back
        self._begun: dict[str, Prompt] | None = None  # by tenant, one that has begun, or may in this plan

    def begin_plan(self) -> None:
        """Who runs or has ended is back."""
        self._begun = None
        if self._prompts:
            self._prompts = {p for p in self._prompts if p.turn is None and p.finish is None}
            self.awaited = {p for p in self._prompts if self._devices.can_some_hold(p)}

    def add(self, prompt: Prompt) -> None:
        """The prompt's context was dropped."""
        self._prompts.add(prompt)
        if self._devices.can_some_hold(prompt):
            self.awaited.add(prompt)

    def hold_back(self, prompt: Prompt, prompts: Iterable[Prompt]) -> bool:
        """Whether a prompt that could start now, one of these `prompts`, must not. Nobody is held back while
        nobody is awaited."""
        if not self.awaited or prompt.turn is not None or prompt.context.computed:
            return False
        if prompt in self._prompts:
            return False
        if self._begun is None:
            self._begun = {p.task.tenant: p for p in prompts if p.context.computed or p in self._prompts}
        return self._begun.setdefault(prompt.task.tenant, prompt) is not prompt
