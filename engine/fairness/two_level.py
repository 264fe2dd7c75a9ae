"""Fair queueing on two levels: tenants compete by weight, the prompts of a tenant by nice level.

cfs and eevdf are this class with different queues. It keeps the vruntimes; the queues decide by them.

Many prompts run at once, so a tenant that is picked must look served before it is charged, or it would be
picked for the whole batch: `pick` projects what a stint (from pick to put_back) is expected to cost onto the
tenant's vruntime, charges use the projection up, and what is left of it goes back when the stint ends. Two
backlogged tenants thus get places in the batch in proportion to their weights.

Bounds. A tenant is picked by cfs only if its vruntime with projections is at most that of any other that is
backlogged. Until the next such moment it grows by what the tenant's running prompts cost, and a projection
is at most `slice_ns`. So, with n places on all GPUs and stints of at most L ns (of GPU time charged), for
tenants i and j that are backlogged throughout,
    | service_i / weight_i - service_j / weight_j |  <=  2 n max(L, slice_ns) / min(weight_i, weight_j)
whereof half is the difference that they may start with, unless one starts in debt. The same holds of eevdf
for two tenants; among more it holds of a tenant and the average.

Nor does an endless stream of newcomers starve anybody: the virtual clock moves past whoever waits, and then
newcomers are placed behind. Between two stints of a prompt each other one of its tenant is served for ten
requests at most, and tenants of the same weight for as many. (The planner's bound on the gap
between tokens is the one that is felt.)
"""

from collections.abc import Callable

from engine.fairness.policy import Task
from engine.fairness.run_queue import RunQueue, VirtualClock
from engine.fairness.tenants import Account, Accounts
from engine.fairness.weights import nice_load, virtual

_LEARNING_SHIFT = 3  # a stint moves the expected cost by an eighth of the difference
_LEARNING_ROUNDING = (1 << _LEARNING_SHIFT) - 1  # up, or a cost of 0 could be learnt


class TwoLevelPolicy:
    """See the module's docstring, and `policy.Policy` for the methods.

    `slice_ns` is the longest slice, the most that a stint is expected to cost. A tenant in debt is remembered
    for `memory_ns` after its last prompt left.
    """

    rotates = True
    grants_wishes = False
    recomputes = False
    counts_tokens = False

    def __init__(
        self,
        tenants: RunQueue[Account],
        make_task_queue: Callable[[], RunQueue[Task]],
        *,
        slice_ns: int,
        memory_ns: int,
    ) -> None:
        assert slice_ns > 0
        self._tenants = tenants  # those that have prompts waiting
        self._make_task_queue = make_task_queue
        self._slice_ns = slice_ns
        self._accounts = Accounts(memory_ns)
        self._clock = VirtualClock()
        self._expected_ns = slice_ns  # cost of a stint
        self._num_queued = 0

    def join(self, task: Task, now_ns: int) -> None:
        """A newcomer is placed at the virtual time of its tenant: no credit, and no debit either, since a
        first token should come soon. One that was served before a restart was then ahead of that time by
        about a slice at most, whatever it had been served in all, so that much is restored."""
        assert not task.has_joined
        task.has_joined = True
        task.load = nice_load(task.nice)
        account = self._accounts.get(task.tenant)
        if account is not None:
            self._withdraw(account)
        account = self._accounts.open(task.tenant, task.weight, self._make_task_queue, self._clock.now_ns)
        if account.num_tasks == 1:
            account.vruntime_ns = max(account.vruntime_ns, self._clock.arrival_ns)
        account.tasks_load += task.load
        account.num_wishes += task.latency_ns is not None
        debt_ns = virtual(min(task.service_ns, self._slice_ns), task.load)
        task.vruntime_ns = task.start_ns = account.clock.arrival_ns + debt_ns
        self._enqueue(account, task)

    def next_tenant(self, now_ns: int) -> str | None:
        return self._tenants.first().tenant if self._num_queued else None

    def pick(self, now_ns: int) -> Task | None:
        if not self._num_queued:
            return None
        account = self._tenants.pop_first()
        task = account.queue.pop_first()
        self._start_stint(account, task)
        return task

    def take(self, task: Task, now_ns: int) -> None:
        assert task.is_queued
        account = self._accounts[task.tenant]
        self._tenants.remove(account)
        account.queue.remove(task)
        self._start_stint(account, task)

    def put_back(self, task: Task, now_ns: int) -> None:
        assert not task.is_queued
        account = self._accounts[task.tenant]
        if task.stint_ns:
            self._learn(task.stint_ns)
        if account.num_waiting and not task.projected_ns and task.latency_ns is None:
            self._let_wait(account, task)  # nothing that its tenant's place depends on changes
            return
        self._withdraw(account)
        self._refund(account, task)
        self._enqueue(account, task)

    def charge(self, task: Task, service_ns: int, now_ns: int) -> None:
        """A step that was in flight at the time of `leave` is charged after it, maybe to a tenant that had no
        debt until then and was forgotten."""
        account = self._accounts.get(task.tenant)
        if account is not None:
            self._charge(account, task, service_ns)
            return
        account = self._accounts.open(task.tenant, task.weight, self._make_task_queue, self._clock.now_ns)
        self._charge(account, task, service_ns)
        self._accounts.close(account, now_ns, self._clock.now_ns)

    def charge_tokens(self, task: Task, num_tokens: int, now_ns: int) -> None:
        """Time is what counts here."""

    def leave(self, task: Task, now_ns: int) -> None:
        if not task.has_joined:
            return
        task.has_joined = False
        account = self._accounts[task.tenant]
        self._withdraw(account)
        if task.is_queued:
            account.queue.remove(task)
            account.num_waiting -= 1
            task.is_queued = False
            self._num_queued -= 1
        else:
            self._refund(account, task)
        account.tasks_load -= task.load
        account.num_wishes -= task.latency_ns is not None
        self._offer(account)
        self._accounts.close(account, now_ns, self._clock.now_ns)

    def preempts(self, waiting: Task, running: Task, now_ns: int) -> bool:
        """As in the kernel, the two are compared where they differ: prompts of one tenant with each other,
        those of two tenants by their tenants, each without what holding this place costs it."""
        ours = self._accounts[waiting.tenant]
        if waiting.tenant == running.tenant:
            return ours.queue.outranks(waiting, waiting.vruntime_ns, running, running.vruntime_ns)
        theirs = self._accounts[running.tenant]
        ours_ns = ours.vruntime_ns - waiting.projected_ns
        theirs_ns = theirs.vruntime_ns - running.projected_ns
        return self._tenants.outranks(ours, ours_ns, theirs, theirs_ns)

    def num_queued(self) -> int:
        return self._num_queued

    def num_queued_of(self, tenant: str) -> int:
        account = self._accounts.get(tenant)
        return 0 if account is None else account.num_waiting

    def vruntime_spread_ns(self) -> int:
        settled = [account.settled_ns for account in self._accounts.values() if account.num_waiting]
        return max(settled) - min(settled) if settled else 0

    def check_integrity(self) -> None:
        self._accounts.check_integrity()
        self._tenants.check_integrity()
        assert self._num_queued == sum(account.num_waiting for account in self._accounts.values())
        assert len(self._tenants) == sum(account.num_waiting > 0 for account in self._accounts.values())
        assert 0 < self._expected_ns <= self._slice_ns
        for account in self._accounts.values():
            account.queue.check_integrity()
            assert (account in self._tenants) == (account.num_waiting > 0)

    def _withdraw(self, account: Account) -> None:
        """Take a tenant out of the queue, if it is there, so that its numbers may change."""
        if account.num_waiting:
            self._tenants.remove(account)

    def _offer(self, account: Account) -> None:
        if account.num_waiting:
            self._tenants.add(account)

    def _enqueue(self, account: Account, task: Task) -> None:
        """Let `task` wait. The tenant has been withdrawn.

        A tenant none of whose prompts waited had all that it wanted. What it did not use is not owed to it:
        it is placed at the virtual time, as `place_entity` of kernel/sched/fair.c does, less half of a stint
        (GENTLE_FAIR_SLEEPERS), so that a light tenant is not the loser of every tie.
        """
        if not account.num_waiting:
            allowance_ns = virtual(self._expected_ns // 2, account.load)
            account.vruntime_ns = max(account.vruntime_ns, self._clock.now_ns - allowance_ns)
        self._let_wait(account, task)
        self._tenants.add(account)

    def _let_wait(self, account: Account, task: Task) -> None:
        account.queue.add(task)
        account.num_waiting += 1
        task.is_queued = True
        self._num_queued += 1

    def _start_stint(self, account: Account, task: Task) -> None:
        """`task` was taken out of the queue, and its tenant withdrawn."""
        projected_ns = virtual(self._expected_ns, account.load)
        task.is_queued = False
        task.stint_ns = 0
        task.projected_ns = projected_ns
        account.projected_ns += projected_ns
        account.vruntime_ns += projected_ns
        account.num_waiting -= 1
        self._num_queued -= 1
        if account.num_waiting:
            self._tenants.add(account)

    def _refund(self, account: Account, task: Task) -> None:
        """The stint is over: what was projected and not charged goes back. The tenant has been withdrawn."""
        account.projected_ns -= task.projected_ns
        account.vruntime_ns -= task.projected_ns
        task.projected_ns = 0

    def _learn(self, stint_ns: int) -> None:
        """Stints that were longer than a slice, because nobody waited, count as one."""
        if stint_ns > self._slice_ns:
            stint_ns = self._slice_ns
        self._expected_ns += (stint_ns - self._expected_ns + _LEARNING_ROUNDING) >> _LEARNING_SHIFT

    def _charge(self, account: Account, task: Task, service_ns: int) -> None:
        self._charge_task(account, task, service_ns)
        self._charge_tenant(account, task, service_ns)

    def _charge_task(self, account: Account, task: Task, service_ns: int) -> None:
        task.service_ns += service_ns
        task.stint_ns += service_ns
        delta_ns = virtual(service_ns, task.load)
        if task.is_queued:  # by a step that was in flight when it was put back
            account.queue.remove(task)
            task.vruntime_ns += delta_ns
            account.queue.add(task)
        else:
            task.vruntime_ns += delta_ns
        floor_ns = account.queue.floor_ns() if account.num_waiting else None
        fluid_ns = virtual(service_ns, account.tasks_load or task.load)
        account.clock.advance(delta_ns, fluid_ns, task.vruntime_ns, floor_ns)

    def _charge_tenant(self, account: Account, task: Task, service_ns: int) -> None:
        delta_ns = virtual(service_ns, account.load)
        expected_ns = delta_ns if delta_ns < task.projected_ns else task.projected_ns
        task.projected_ns -= expected_ns
        account.projected_ns -= expected_ns
        if delta_ns > expected_ns:
            self._withdraw(account)
            account.vruntime_ns += delta_ns - expected_ns
            self._offer(account)
        floor_ns = self._tenants.floor_ns() if self._num_queued else None
        fluid_ns = virtual(service_ns, self._accounts.load or account.load)
        self._clock.advance(delta_ns, fluid_ns, account.settled_ns, floor_ns)
