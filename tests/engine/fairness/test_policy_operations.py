"""Random operations on every policy, checked against a plain account of who waits, runs and has left."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.fairness import POLICIES, Task, make_policy

from .device import GRANULARITY_NS, MS, SLICE_NS


class PolicyOperations(RuleBasedStateMachine):
    name = "cfs"

    def __init__(self) -> None:
        super().__init__()
        self.policy = make_policy(
            self.name, slice_ns=SLICE_NS, granularity_ns=GRANULARITY_NS, memory_ns=100 * MS
        )
        self.now_ns = 0
        self.num_tasks = 0
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.gone: list[Task] = []

    @rule(
        tenant=st.sampled_from("abc"),
        weight=st.sampled_from([0.5, 1.0, 7.0]),
        nice=st.integers(-20, 19),
        latency_ns=st.sampled_from([None, MS, 50 * MS]),
        service_ns=st.sampled_from([0, 0, 3000 * MS]),
    )
    def join(self, tenant: str, weight: float, nice: int, latency_ns: int | None, service_ns: int) -> None:
        task = Task(self.num_tasks, tenant, weight, nice, self.now_ns, latency_ns, 100, service_ns=service_ns)
        self.num_tasks += 1
        self.policy.join(task, self.now_ns)
        self.waiting.append(task)

    @rule()
    def pick(self) -> None:
        tenant = self.policy.next_tenant(self.now_ns)
        task = self.policy.pick(self.now_ns)
        assert (task is None) == (not self.waiting)
        assert tenant == (task.tenant if task is not None else None)
        if task is not None:
            self.waiting.remove(task)
            self.running.append(task)

    @rule(index=st.integers(0, 100))
    def take(self, index: int) -> None:
        if self.waiting:
            task = self.waiting.pop(index % len(self.waiting))
            self.policy.take(task, self.now_ns)
            self.running.append(task)

    @rule(index=st.integers(0, 100))
    def put_back(self, index: int) -> None:
        if self.running:
            task = self.running.pop(index % len(self.running))
            self.policy.put_back(task, self.now_ns)
            self.waiting.append(task)

    @rule(index=st.integers(0, 100), service_ns=st.integers(1, 300 * MS))
    def charge(self, index: int, service_ns: int) -> None:
        """Anybody: those who run, or steps in flight of those who wait or have left."""
        tasks = self.running or self.waiting or self.gone
        if tasks:
            task = tasks[index % len(tasks)]
            self.now_ns += service_ns
            before_ns = task.service_ns
            self.policy.charge(task, service_ns, self.now_ns)
            self.policy.charge_tokens(task, 1 + service_ns // MS, self.now_ns)
            assert task.service_ns == before_ns + service_ns

    @rule(index=st.integers(0, 100))
    def leave(self, index: int) -> None:
        tasks = self.running + self.waiting
        if tasks:
            task = tasks[index % len(tasks)]
            self.policy.leave(task, self.now_ns)
            (self.running if task in self.running else self.waiting).remove(task)
            self.gone.append(task)

    @rule(index=st.integers(0, 100))
    def preempt(self, index: int) -> None:
        if self.waiting and self.running:
            waiting, running = (
                self.waiting[index % len(self.waiting)],
                self.running[index % len(self.running)],
            )
            deserves = self.policy.preempts(waiting, running, self.now_ns)
            assert self.policy.rotates or not deserves

    @invariant()
    def books_agree(self) -> None:
        self.policy.check_integrity()
        assert self.policy.num_queued() == len(self.waiting)
        assert all(task.is_queued for task in self.waiting)
        assert not any(task.is_queued for task in self.running + self.gone)

    def teardown(self) -> None:
        """Everybody who waits is picked in the end, once."""
        picked = [self.policy.pick(self.now_ns) for _ in self.waiting]
        assert set(picked) == set(self.waiting)
        assert self.policy.pick(self.now_ns) is None


def _operations_of(name: str) -> type:
    machine = type(f"{name.capitalize()}Operations", (PolicyOperations,), {"name": name})
    case = machine.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
    return case


TestCfsOperations, TestEevdfOperations, TestFcfsOperations, TestVtcOperations = map(_operations_of, POLICIES)
