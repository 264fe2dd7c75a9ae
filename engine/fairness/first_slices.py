"""The gate before the fair queue, for prompts that have not had their first token.

A first slice lasts until the first token and is charged afterwards, so whoever sends many short prompts would
have more service than is due before anybody counts. So only some prompts of a tenant may be before their
first token at once; the others wait outside, in order of arrival, and join as those inside get theirs.
"""

from dataclasses import dataclass, field

from engine.fairness.policy import Task


@dataclass(slots=True)
class _Gate:
    inside: set[Task] = field(default_factory=set)
    outside: dict[Task, None] = field(default_factory=dict)  # in order of arrival


class FirstSliceGate:
    """Lets at most `limit` prompts of each tenant in at once."""

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self._limit = limit
        self._gates: dict[str, _Gate] = {}  # of tenants that have prompts before their first token

    def enter(self, task: Task) -> bool:
        """A prompt arrived. False: it waits outside until `leave` returns it."""
        gate = self._gates.setdefault(task.tenant, _Gate())
        assert task not in gate.inside
        assert task not in gate.outside
        if len(gate.inside) < self._limit:
            gate.inside.add(task)
            return True
        gate.outside[task] = None
        return False

    def leave(self, task: Task) -> list[Task]:
        """The prompt has its first token, or is gone; the prompts that are inside now in its stead. Nothing
        happens for one that has left already or was never gated."""
        gate = self._gates.get(task.tenant)
        if gate is None:
            return []
        gate.outside.pop(task, None)
        gate.inside.discard(task)
        entering = list(gate.outside)[: self._limit - len(gate.inside)] if gate.outside else []
        for each in entering:
            del gate.outside[each]
            gate.inside.add(each)
        if not gate.inside:
            del self._gates[task.tenant]
        return entering

    def holds(self, task: Task) -> bool:
        """Whether the prompt waits outside."""
        gate = self._gates.get(task.tenant)
        return gate is not None and task in gate.outside

    def check_integrity(self) -> None:
        for tenant, gate in self._gates.items():
            assert 0 < len(gate.inside) <= self._limit
            assert not gate.outside or len(gate.inside) == self._limit
            assert gate.inside.isdisjoint(gate.outside)
            assert all(task.tenant == tenant for task in (*gate.inside, *gate.outside))
