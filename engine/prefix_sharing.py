"""Prompts and the prefix cache: what a prompt may skip, and when it is better to wait for what another
computes."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.device import Device
from engine.memory.prefix_cache import NOTHING, Prefix
from engine.memory.prefix_tree import TOKEN_BYTES
from engine.memory.store import ContextStore
from engine.prompt import Prompt

MIN_WAIT_TOKENS = 128  # it takes so many that are being computed to begin to wait for them


@dataclass(slots=True)
class PrefixCounters:
    """Tokens of prompts, counted as each begins."""

    queried: int = 0
    hit: int = 0


class PrefixSharing:
    """Prompts join the cache when they start to run and leave their contexts to it when they end."""

    def __init__(self, store: ContextStore) -> None:
        self.counters = PrefixCounters()
        self._store = store
        self._patient: set[Prompt] = set()  # who waits for what others compute
        self._latest: Prompt | None = None  # who was asked about last, ...
        self._found: dict[Device, Prefix] = {}  # ... and what was found since anything changed

    def begin_plan(self) -> None:
        """What was found before may not be all any more."""
        self._latest = None

    def is_worth_waiting(self, prompt: Prompt, devices: Sequence[Device]) -> bool:
        """Whether another prompt is computing what this one, which has nothing yet, begins with; and no
        device would stand idle."""
        if prompt.turn is not None or prompt.context.node is not None or not self._may_read(prompt):
            return False
        coming = 0
        for device in devices:
            coming = max(coming, self._find(prompt, device).num_coming)
        if not coming and not self._patient:
            return False
        least = 1 if prompt in self._patient else MIN_WAIT_TOKENS
        is_worth = coming >= least and all(device.running for device in devices)
        (self._patient.add if is_worth else self._patient.discard)(prompt)
        return is_worth

    def num_cached(self, prompt: Prompt, device: Device) -> int:
        """Positions of a prompt which has nothing yet that the device has."""
        may_join = prompt.context.node is None and self._may_read(prompt)
        return self._find(prompt, device).end if may_join else 0

    def join(self, prompt: Prompt, device: Device) -> bool:
        """A prompt is about to start on the device; if it has nothing yet, it goes on from what is cached.
        Whether it joined: `part` undoes that."""
        if prompt.context.node is not None or not self._store.shares_prefixes:
            return False
        prefix = self._find(prompt, device) if self._may_read(prompt) else NOTHING
        self._latest = None
        prompt.context = self._store.join(prompt.context, device.pool_id, prompt.salt, prompt.pack(), prefix)
        return True

    def part(self, prompt: Prompt) -> None:
        """A prompt that has just joined does not start after all."""
        self._latest = None
        prompt.context = self._store.part(prompt.context, prompt.pack())

    def count(self, prompt: Prompt) -> None:
        """The prompt has started."""
        if not prompt.has_started:
            prompt.has_started = True
            prompt.cached_tokens = min(prompt.context.computed, len(prompt.input_ids))
            self.counters.queried += len(prompt.input_ids)
            self.counters.hit += prompt.cached_tokens

    def retire(self, prompt: Prompt) -> None:
        """The prompt has ended: its context is for others."""
        self._patient.discard(prompt)
        self._store.retire(prompt.context, prompt.pack())

    def _may_read(self, prompt: Prompt) -> bool:
        """Log probabilities of a prompt's tokens come only of computing them."""
        return self._store.shares_prefixes and prompt.sampling.prompt_logprobs is None

    def _find(self, prompt: Prompt, device: Device) -> Prefix:
        if prompt is not self._latest:
            self._latest = prompt
            self._found.clear()
        prefix = self._found.get(device)
        if prefix is None:
            tokens = prompt.pack()[:-TOKEN_BYTES]  # the last is computed in any case
            prefix = self._found[device] = self._store.find_prefix(device.pool_id, prompt.salt, tokens)
        return prefix
