"""First come, first served, and served to the end: what most engines do, and the baseline here."""

from engine.fairness.policy import Task
from engine.fairness.run_queue import SortedDeque


class FcfsPolicy:
    """Prompts in order of arrival (`serial`), tenants and weights unheeded.

    A prompt that is put back takes the place that its arrival gives it: before all that came later.
    """

    rotates = False
    grants_wishes = False
    recomputes = True
    counts_tokens = False

    def __init__(self) -> None:
        self._queue: SortedDeque[Task] = SortedDeque()  # (0, serial, task)

    def join(self, task: Task, now_ns: int) -> None:
        self.put_back(task, now_ns)

    def next_tenant(self, now_ns: int) -> str | None:
        return self._queue[0][2].tenant if self._queue else None

    def pick(self, now_ns: int) -> Task | None:
        if not self._queue:
            return None
        task = self._queue.popleft()[2]
        task.is_queued = False
        return task

    def take(self, task: Task, now_ns: int) -> None:
        self._queue.remove((0, task.serial, task))
        task.is_queued = False

    def put_back(self, task: Task, now_ns: int) -> None:
        assert not task.is_queued
        self._queue.add((0, task.serial, task))
        task.is_queued = True

    def charge(self, task: Task, service_ns: int, now_ns: int) -> None:
        task.service_ns += service_ns

    def charge_tokens(self, task: Task, num_tokens: int, now_ns: int) -> None:
        """Nothing is counted here."""

    def leave(self, task: Task, now_ns: int) -> None:
        if task.is_queued:
            self.take(task, now_ns)

    def preempts(self, waiting: Task, running: Task, now_ns: int) -> bool:
        return False

    def num_queued(self) -> int:
        return len(self._queue)

    def num_queued_of(self, tenant: str) -> int:
        return len(self._queue)

    def vruntime_spread_ns(self) -> int:
        return 0

    def check_integrity(self) -> None:
        serials = [serial for _, serial, _ in self._queue]
        assert serials == sorted(set(serials))
        assert all(task.is_queued and task.serial == serial for _, serial, task in self._queue)
