"""The gate before first slices: a prompt's first slice lasts until its first token and is charged after it, so
a tenant may have only a few prompts there at once, or a flood of one-token prompts would buy it service."""

from collections import deque

from engine.fairness.policy import Task


class FirstSliceGate:
    """At most `limit` prompts of a tenant are inside (before their first token); others wait in order."""

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self.limit = limit
        self._inside: dict[str, set[Task]] = {}
        self._outside: dict[str, deque[Task]] = {}

    def enter(self, task: Task) -> bool:
        """Whether the task is let in at once; if not, a later `leave` will name it."""
        inside = self._inside.setdefault(task.tenant, set())
        if len(inside) < self.limit:
            inside.add(task)
            return True
        self._outside.setdefault(task.tenant, deque()).append(task)
        return False

    def leave(self, task: Task) -> list[Task]:
        """The task had its first token, or is gone, inside or outside. The tasks that come in for it."""
        inside, outside = self._inside.get(task.tenant, set()), self._outside.get(task.tenant, deque())
        if task in inside:
            inside.remove(task)
        elif task in outside:
            outside.remove(task)
        entering = [outside.popleft() for _ in range(min(len(outside), self.limit - len(inside)))]
        inside.update(entering)
        if not inside:
            self._inside.pop(task.tenant, None)
        if not outside:
            self._outside.pop(task.tenant, None)
        return entering

    def holds(self, task: Task) -> bool:
        """Whether the task waits outside."""
        return task in self._outside.get(task.tenant, ())

    @property
    def num_outside(self) -> int:
        return sum(map(len, self._outside.values()))
