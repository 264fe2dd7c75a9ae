"""The interface of a scheduling policy: who runs next, and what running costs.

A policy is pure: it holds queues and counters, takes the time as an argument, and knows nothing of GPUs,
pages or sockets. The scheduler drives it as a kernel drives a scheduling class:

    join       a prompt arrives (or comes back after the engine was restarted, with its service so far)
    pick       the prompt that should run next leaves the queue
    put_back   a picked prompt waits again: its slice is over, or it found no room (nothing was charged)
    charge     a prompt used GPU time; it may be running or waiting, or have left while a step was in flight
    leave      a prompt is finished or aborted, wherever it is, even if it has not joined yet

One prompt is running on one device at most, and many run at once: `pick` is called until the batch is full.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, eq=False)
class Task:
    """A prompt as policies see it. The fields after `service_ns` belong to the policy that holds it. Those of
    a task that begins to run are next to each other: in a long queue they are cold memory."""

    serial: int  # unique and rising in order of arrival: the last word in every order
    tenant: str
    weight: float  # of the tenant, > 0
    nice: int  # of the prompt within its tenant, -20..19
    arrival_ns: int
    latency_ns: int | None = None  # wished slice length
    prompt_tokens: int = 0  # of its input
    service_ns: int = 0  # GPU time charged so far
    waits_since_ns: int | None = None  # from when its gap counts; None: it does not wait (`gap`)
    is_queued: bool = False
    stint_ns: int = 0  # charged since it was picked
    projected_ns: int = 0  # of its tenant's vruntime: what this stint is expected to cost, not charged yet
    start_ns: int = 0  # vruntime at which its current request began
    vruntime_ns: int = 0
    deadline_ns: int = 0
    load: int = 1024  # of the nice level, as `weights` has it
    has_joined: bool = False


class Policy(Protocol):
    """See the module's docstring. All times are integer nanoseconds."""

    rotates: bool  # False: a prompt that runs is never stopped for one that waits
    grants_wishes: bool  # True: a prompt that wishes short slices has them
    recomputes: bool  # True: a prompt that must give up its pages is recomputed, not moved to another tier
    counts_tokens: bool  # True: `charge_tokens` is to be called

    def join(self, task: Task, now_ns: int) -> None:
        """Take a newcomer into the queue; `task.service_ns` is not 0 if it was served before a restart."""

    def next_tenant(self, now_ns: int) -> str | None:
        """Whose task `pick` would take; None if nobody waits."""

    def pick(self, now_ns: int) -> Task | None:
        """Take the next task to run out of the queue; None if nobody waits."""

    def take(self, task: Task, now_ns: int) -> None:
        """Take this very task out of the queue, to run it out of turn."""

    def put_back(self, task: Task, now_ns: int) -> None:
        """A task that was picked waits again, where its vruntime puts it."""

    def charge(self, task: Task, service_ns: int, now_ns: int) -> None:
        """The task used `service_ns` of GPU time. To be called at the end of its slices, also when the next
        follows at once: time that is charged late looks like a debt to those who arrived meanwhile."""

    def charge_tokens(self, task: Task, num_tokens: int, now_ns: int) -> None:
        """The task sampled `num_tokens`, for policies that count tokens and not time."""

    def leave(self, task: Task, now_ns: int) -> None:
        """The task is gone. Its debt stays with its tenant."""

    def preempts(self, waiting: Task, running: Task, now_ns: int) -> bool:
        """Whether `waiting`, which is queued or was picked and found no room, deserves the place of `running`
        before that one's slice is over. The scheduler has seen to it that `running` had its minimum
        granularity."""

    def num_queued(self) -> int:
        """Tasks in the queue."""

    def num_queued_of(self, tenant: str) -> int:
        """Tasks in the queue that wait because others of the tenant are served: all, where tenants do not
        count."""

    def vruntime_spread_ns(self) -> int:
        """How far apart the vruntimes of the tenants that wait are: what was charged, divided by weight.
        0 of policies that keep none."""

    def check_integrity(self) -> None:
        """Raise AssertionError if the queues contradict each other."""
