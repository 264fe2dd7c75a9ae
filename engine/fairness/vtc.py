"""The virtual token counter, for comparison: fair in tokens, and run to completion.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2 and the weighted form of
section 4.3. A tenant's counter grows by the weighted tokens it is served, divided by its weight; the waiting
tenant with the least counter goes next, with its oldest prompt. The input is counted when a prompt is picked,
output as it is sampled. A tenant that had nothing waiting is lifted to the least counter of those that have,
or, if nobody waits, to that of the tenant that was last to stop waiting.
"""

from engine.fairness.cfs import LeastServedQueue
from engine.fairness.policy import Task
from engine.fairness.tenants import Account, Accounts
from engine.fairness.weights import virtual

INPUT_COST = 1
OUTPUT_COST = 2
"""Weights of an input and of an output token, as in the paper's evaluation."""

_SCALE = 1024  # counter units per token, so that dividing by a weight rounds little


class VtcPolicy:
    """See the module's docstring. `task.prompt_tokens` is what is counted as input, once per prompt.

    An account's `vruntime_ns` is the tenant's counter here: a count of tokens, times `_SCALE`. Prompts have
    no vruntime of their own, so they go by serial.
    """

    rotates = False
    grants_wishes = False
    recomputes = True
    counts_tokens = True

    def __init__(self, *, memory_ns: int) -> None:
        self._tenants: LeastServedQueue[Account] = LeastServedQueue(0)
        self._accounts = Accounts(memory_ns)
        self._input_counts: dict[int, int] = {}  # by serial of prompts that were picked: what was counted
        self._last_to_wait: Account | None = None
        self._num_queued = 0

    def join(self, task: Task, now_ns: int) -> None:
        assert not task.has_joined
        task.has_joined = True
        level = self._level()
        account = self._accounts.get(task.tenant)
        if account is not None and account.num_waiting:
            self._tenants.remove(account)
        account = self._accounts.open(task.tenant, task.weight, _by_arrival, level)
        if not account.num_waiting:
            account.vruntime_ns = max(account.vruntime_ns, level)
        self._enqueue(account, task)

    def next_tenant(self, now_ns: int) -> str | None:
        return self._tenants.first().tenant if self._num_queued else None

    def pick(self, now_ns: int) -> Task | None:
        if not self._num_queued:
            return None
        task = self._tenants.first().queue.first()
        self.take(task, now_ns)
        return task

    def take(self, task: Task, now_ns: int) -> None:
        account = self._accounts[task.tenant]
        self._tenants.remove(account)
        account.queue.remove(task)
        account.num_waiting -= 1
        self._num_queued -= 1
        task.is_queued = False
        task.stint_ns = 0
        if task.serial not in self._input_counts:
            count = virtual(_SCALE * INPUT_COST * task.prompt_tokens, account.load)
            self._input_counts[task.serial] = count
            account.vruntime_ns += count
        if account.num_waiting:
            self._tenants.add(account)
        else:
            self._last_to_wait = account

    def put_back(self, task: Task, now_ns: int) -> None:
        """Not a new arrival: its tenant is not lifted."""
        assert not task.is_queued
        account = self._accounts[task.tenant]
        if account.num_waiting:
            self._tenants.remove(account)
        self._uncount_if_unused(account, task)
        self._enqueue(account, task)

    def charge(self, task: Task, service_ns: int, now_ns: int) -> None:
        task.service_ns += service_ns
        task.stint_ns += service_ns

    def charge_tokens(self, task: Task, num_tokens: int, now_ns: int) -> None:
        account = self._accounts.get(task.tenant)
        if account is None:
            return  # of a prompt that left: its tenant was not in debt, and a step's tokens are no debt
        if account.num_waiting:
            self._tenants.remove(account)
        account.vruntime_ns += virtual(_SCALE * OUTPUT_COST * num_tokens, account.load)
        if account.num_waiting:
            self._tenants.add(account)

    def leave(self, task: Task, now_ns: int) -> None:
        if not task.has_joined:
            return
        task.has_joined = False
        account = self._accounts[task.tenant]
        if account.num_waiting:
            self._tenants.remove(account)
        if task.is_queued:
            account.queue.remove(task)
            account.num_waiting -= 1
            self._num_queued -= 1
            task.is_queued = False
        else:
            self._uncount_if_unused(account, task)
        self._input_counts.pop(task.serial, None)
        if account.num_waiting:
            self._tenants.add(account)
        self._accounts.close(account, now_ns, self._level())

    def preempts(self, waiting: Task, running: Task, now_ns: int) -> bool:
        return False

    def num_queued(self) -> int:
        return self._num_queued

    def num_queued_of(self, tenant: str) -> int:
        account = self._accounts.get(tenant)
        return 0 if account is None else account.num_waiting

    def vruntime_spread_ns(self) -> int:
        return 0

    def check_integrity(self) -> None:
        self._accounts.check_integrity()
        self._tenants.check_integrity()
        assert self._num_queued == sum(account.num_waiting for account in self._accounts.values())
        assert len(self._tenants) == sum(account.num_waiting > 0 for account in self._accounts.values())
        for account in self._accounts.values():
            account.queue.check_integrity()
            assert (account in self._tenants) == (account.num_waiting > 0)

    def _level(self) -> int:
        """The counter that a tenant with nothing waiting is lifted to."""
        if self._num_queued:
            return self._tenants.first().vruntime_ns
        return self._last_to_wait.vruntime_ns if self._last_to_wait is not None else 0

    def _enqueue(self, account: Account, task: Task) -> None:
        """The tenant is in no queue."""
        account.queue.add(task)
        account.num_waiting += 1
        task.is_queued = True
        self._num_queued += 1
        self._tenants.add(account)

    def _uncount_if_unused(self, account: Account, task: Task) -> None:
        """A prompt that was picked and found no room was served nothing."""
        if not task.stint_ns and task.serial in self._input_counts:
            account.vruntime_ns -= self._input_counts.pop(task.serial)


def _by_arrival() -> LeastServedQueue[Task]:
    return LeastServedQueue(0)
