"""Prompts and the prefix cache: what a prompt may skip, and when it is better to wait for what another
computes."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.device import Device
from engine.devices import Devices
from engine.memory.prefix_search import NOTHING, NOWHERE, Prefix
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

    def __init__(self, store: ContextStore, devices: Devices) -> None:
        self.counters = PrefixCounters()
        self._store = store
        self._devices = devices
        self._patient: set[Prompt] = set()  # who waits for what others compute
        self._latest: Prompt | None = None  # who was asked about last, ...
        self._found = NOWHERE  # ... and what was found since anything changed

    def begin_plan(self) -> None:
        """What was found before may not be all any more."""
        self._latest = None

    def is_worth_waiting(self, prompt: Prompt) -> bool:
        """Whether another prompt is computing what this one, which has nothing yet, begins with; and no
        device would stand idle."""
        found = self.find(prompt)
        if not (found or self._patient):
            return False
        coming = max((found[pool].num_coming for pool in found if pool in self._devices.up), default=0)
        least = 1 if prompt in self._patient else MIN_WAIT_TOKENS
        is_worth = coming >= least and self._devices.are_all_busy()
        (self._patient.add if is_worth else self._patient.discard)(prompt)
        return is_worth

    def find(self, prompt: Prompt) -> Mapping[int, Prefix]:
        """What of a prompt that has nothing yet is computed, or about to be, by the pool of its device. Log
        probabilities of a prompt's tokens come only of computing them: for such a prompt, nothing."""
        if prompt is not self._latest:
            self._latest = prompt
            if prompt.context.node is None and prompt.sampling.prompt_logprobs is None:
                self._found = self._store.find_prefixes(prompt.salt, prompt.pack())
            else:
                self._found = NOWHERE
        return self._found

    def join(self, prompt: Prompt, device: Device) -> bool:
        """A prompt that has nothing yet is about to start on the device: it goes on from what is cached.
        Whether it joined: `part` undoes that."""
        if not self._store.shares_prefixes:
            return False
        found = self._found if prompt is self._latest else self.find(prompt)
        prefix = found.get(device.pool_id, NOTHING) if found else NOTHING
        self._latest = None
        prompt.context = self._store.join(prompt.context, device.pool_id, prompt.salt, prompt.pack(), prefix)
        return True

    def part(self, prompt: Prompt) -> None:
        """A prompt that has just joined does not start after all."""
        self._latest = None
        prompt.context = self._store.part(prompt.context, prompt.pack())

    def count(self, prompt: Prompt) -> None:
        """The prompt has started for the first time."""
        prompt.has_started = True
        num_input, counters = len(prompt.input_ids), self.counters
        counters.queried += num_input
        if prompt.context.computed:
            prompt.cached_tokens = min(prompt.context.computed, num_input)
            counters.hit += prompt.cached_tokens

    def retire(self, prompt: Prompt) -> None:
        """The prompt has ended: its context is for others."""
        self._patient.discard(prompt)
        self._store.retire(prompt.context, prompt.pack())
