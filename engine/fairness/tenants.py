"""Tenant accounts: what a tenant has used, kept for a while after its last prompt has left."""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.fairness.policy import Task
from engine.fairness.run_queue import RunQueue, VirtualClock
from engine.fairness.weights import NICE_0_LOAD, weight_load


@dataclass(slots=True, eq=False)
class Account:
    """One tenant. `vruntime_ns` includes `projected_ns`, what its running prompts are expected to be charged
    yet. `clock` is the virtual time of its prompts, `queue` those that wait."""

    serial: int  # in order of first appearance
    tenant: str
    queue: RunQueue[Task]
    load: int = NICE_0_LOAD
    vruntime_ns: int = 0
    projected_ns: int = 0
    start_ns: int = 0
    deadline_ns: int = 0
    num_tasks: int = 0
    tasks_load: int = 0  # of all its tasks
    num_wishes: int = 0  # tasks with a `latency_ns`
    num_waiting: int = 0  # in `queue`, whose len() would cost a call at every step
    clock: VirtualClock = field(default_factory=VirtualClock)

    @property
    def latency_ns(self) -> int | None:
        """The wish of the prompt that would run next: a short one speeds up its tenant, too, as a group of
        the kernel takes over the slice of its entities."""
        return self.queue.first().latency_ns if self.num_wishes and self.num_waiting else None

    @property
    def settled_ns(self) -> int:
        """vruntime of what was charged."""
        return self.vruntime_ns - self.projected_ns


class Accounts(dict[str, Account]):
    """All tenants that have prompts, and those whose debt is not forgotten yet.

    A tenant whose last prompt left is remembered while it is in debt (its vruntime is ahead of the clock),
    `memory_ns` at most. Behind the clock there is nothing to remember: it would be placed at the clock.
    """

    def __init__(self, memory_ns: int) -> None:
        super().__init__()
        self._memory_ns = memory_ns
        self._idle_since_ns: dict[str, int] = {}  # in order of time
        self._next_serial = 0
        self.load = 0  # of the tenants that have tasks

    def open(
        self, tenant: str, weight: float, make_queue: Callable[[], RunQueue[Task]], clock_ns: int
    ) -> Account:
        """Count one more task of `tenant`; one that is not known is placed at the clock. The latest weight
        holds."""
        account = self.get(tenant)
        if account is None:
            account = Account(self._next_serial, tenant, make_queue(), vruntime_ns=clock_ns)
            self._next_serial += 1
            self[tenant] = account
        if account.num_tasks:
            self.load -= account.load
        self._idle_since_ns.pop(tenant, None)
        account.load = weight_load(weight)
        self.load += account.load
        account.num_tasks += 1
        return account

    def close(self, account: Account, now_ns: int, clock_ns: int) -> None:
        """Count one of the account's tasks out."""
        account.num_tasks -= 1
        if account.num_tasks == 0:
            self.load -= account.load
            self._idle_since_ns[account.tenant] = now_ns
            self._forget_if_due(account, now_ns, clock_ns)
        oldest = next(iter(self._idle_since_ns), None)
        if oldest is not None:
            self._forget_if_due(self[oldest], now_ns, clock_ns)

    def _forget_if_due(self, account: Account, now_ns: int, clock_ns: int) -> None:
        is_old = now_ns - self._idle_since_ns[account.tenant] >= self._memory_ns
        if is_old or account.vruntime_ns <= clock_ns:
            del self[account.tenant], self._idle_since_ns[account.tenant]

    def check_integrity(self) -> None:
        assert self.load == sum(account.load for account in self.values() if account.num_tasks)
        for tenant, account in self.items():
            assert account.tenant == tenant
            assert account.projected_ns >= 0
            assert account.num_waiting == len(account.queue) <= account.num_tasks
            assert (account.num_tasks == 0) == (tenant in self._idle_since_ns)
        assert self._idle_since_ns.keys() <= self.keys()
        times = list(self._idle_since_ns.values())
        assert times == sorted(times)
