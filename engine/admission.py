"""Bounded admission: the one place where the engine says no, however many api processes ask."""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.config import QueueConfig
from engine.messages import PromptSpec, RateState, Submit, TenantLimits
from engine.prompt import expected_tokens
from engine.token_bucket import TokenBucket

NO_LIMITS = TenantLimits()
NS_PER_S = 1_000_000_000


class Refusal(Exception):
    """A request is not accepted. `code` is an OpenAI error code, `retry_after_s` when to ask again."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Holding:
    """What somebody has in the engine: prompts, and the tokens that their contexts count."""

    num_prompts: int = 0
    num_tokens: int = 0


@dataclass(slots=True)
class Account(Holding):
    """A tenant's holding, and what it may still ask for in this minute: "requests", "tokens"."""

    buckets: dict[str, TokenBucket] = field(default_factory=dict)


@dataclass(slots=True)
class Held:
    """An open prompt. `num_tokens` is what it counts, never less than its context has."""

    tenant: str
    num_tokens: int
    context_tokens: int


class Admission:
    """Counts what was accepted and is not finished, in all and by tenant, and keeps tenants' limits.

    An account with a limit per minute is kept for good: there are as many as tenants in the api's key file.
    """

    def __init__(self, bounds: QueueConfig, clock_ns: Callable[[], int]) -> None:
        self._bounds = bounds
        self._clock_ns = clock_ns
        self._all = Holding()
        self._accounts: dict[str, Account] = {}
        self._prompts: dict[str, Held] = {}  # by prompt id

    @property
    def num_prompts(self) -> int:
        return self._all.num_prompts

    def admit(self, submit: Submit, max_model_len: int) -> None:
        """Take all prompts of the request, or raise Refusal and take none. A resubmitted request was
        accepted before: no bound turns it away, and it is not charged again."""
        for spec in submit.prompts:
            if _longest(spec) > max_model_len:
                raise Refusal(
                    "context_length_exceeded",
                    f"the prompt has {len(spec.input_ids)} tokens and asks for {spec.sampling.max_tokens} "
                    f"more; the longest context is {max_model_len} tokens",
                )
        new = [spec for spec in submit.prompts if spec.prompt_id not in self._prompts]
        account = self._account(submit)
        if not submit.resubmitted:
            try:
                self._check_limits(account, submit.limits or NO_LIMITS, new)
                self._check_queue(new)
                self._check_rates(account, new)
            except Refusal:
                self._forget_unused(submit.tenant)
                raise
            self._charge(account, {"requests": 1, "tokens": sum(len(spec.input_ids) for spec in new)})
        for spec in new:
            self._add(submit.tenant, spec)

    def generated(self, prompt_id: str, num_tokens: int) -> None:
        """Tokens of an answer count as they come: against limits per minute, and in a context that outgrows
        what it was counted for."""
        held = self._prompts[prompt_id]
        account = self._accounts[held.tenant]
        if account.buckets:
            self._charge(account, {"tokens": num_tokens})
        held.context_tokens += num_tokens
        excess = held.context_tokens - held.num_tokens
        if excess > 0:
            for counted in (self._all, account, held):
                counted.num_tokens += excess

    def release(self, prompt_id: str) -> None:
        """The prompt has ended."""
        held = self._prompts.pop(prompt_id)
        account = self._accounts[held.tenant]
        for holding in (self._all, account):
            holding.num_prompts -= 1
            holding.num_tokens -= held.num_tokens
        self._forget_unused(held.tenant)

    def rates(self, tenant: str) -> dict[str, RateState]:
        """How the tenant's limits per minute stand."""
        account, now_ns = self._accounts.get(tenant), self._clock_ns()
        return {
            name: RateState(
                limit=bucket.per_minute,
                remaining=max(0, int(bucket.level(now_ns))),
                reset_s=bucket.wait_ns(bucket.per_minute, now_ns) / NS_PER_S,
            )
            for name, bucket in (account.buckets.items() if account is not None else ())
        }

    def _account(self, submit: Submit) -> Account:
        """The tenant's account, with the limits that the request brought."""
        account = self._accounts.setdefault(submit.tenant, Account())
        limits = submit.limits or NO_LIMITS
        wanted = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        for name, per_minute in wanted.items():
            if per_minute is None:
                account.buckets.pop(name, None)
            elif name in account.buckets:
                account.buckets[name].change(per_minute)
            else:
                account.buckets[name] = TokenBucket(per_minute, self._clock_ns())
        return account

    def _check_limits(self, account: Account, limits: TenantLimits, specs: list[PromptSpec]) -> None:
        max_prompts = limits.max_prompts or self._bounds.max_prompts_per_tenant
        if max_prompts is not None and account.num_prompts + len(specs) > max_prompts:
            message = f"{account.num_prompts} prompts are open, of {max_prompts} allowed"
            raise Refusal("rate_limit_exceeded", message, 1.0)
        num_tokens = account.num_tokens + sum(map(_counted, specs))
        if limits.max_tokens is not None and num_tokens > limits.max_tokens:
            message = (
                f"with this request {num_tokens} tokens could be in use at once, of {limits.max_tokens} "
                "allowed: wait for others to end, or ask for fewer tokens"
            )
            raise Refusal("rate_limit_exceeded", message, 1.0)

    def _check_queue(self, specs: list[PromptSpec]) -> None:
        bounds = self._bounds
        if self._all.num_prompts + len(specs) > bounds.max_prompts:
            message = f"the queue is full: {self._all.num_prompts} prompts of {bounds.max_prompts}"
            raise Refusal("queue_full", message, 1.0)
        num_tokens = self._all.num_tokens + sum(map(_counted, specs))
        if num_tokens > bounds.max_tokens:
            message = f"the queue is full: {self._all.num_tokens} tokens of {bounds.max_tokens}"
            raise Refusal("queue_full", message, 1.0)

    def _check_rates(self, account: Account, specs: list[PromptSpec]) -> None:
        now_ns = self._clock_ns()
        amounts = {"requests": 1, "tokens": sum(len(spec.input_ids) for spec in specs)}
        for name, bucket in account.buckets.items():
            wait_ns = bucket.wait_ns(amounts[name], now_ns)
            if wait_ns:
                message = f"the limit of {bucket.per_minute} {name} per minute is used up"
                raise Refusal("rate_limit_exceeded", message, wait_ns / NS_PER_S)

    def _charge(self, account: Account, amounts: dict[str, int]) -> None:
        now_ns = self._clock_ns()
        for name, amount in amounts.items():
            if name in account.buckets:
                account.buckets[name].take(amount, now_ns)

    def _add(self, tenant: str, spec: PromptSpec) -> None:
        num_tokens = _counted(spec)
        self._prompts[spec.prompt_id] = Held(tenant, num_tokens, _context(spec))
        for holding in (self._all, self._accounts[tenant]):
            holding.num_prompts += 1
            holding.num_tokens += num_tokens

    def _forget_unused(self, tenant: str) -> None:
        account = self._accounts.get(tenant)
        if account is not None and not account.num_prompts and not account.buckets:
            del self._accounts[tenant]

    def check_integrity(self) -> None:
        assert self._all.num_prompts == len(self._prompts)
        assert self._all.num_tokens == sum(held.num_tokens for held in self._prompts.values())
        assert all(held.context_tokens <= held.num_tokens for held in self._prompts.values())
        assert self._all.num_prompts == sum(each.num_prompts for each in self._accounts.values())
        assert all(each.num_prompts or each.buckets for each in self._accounts.values())


def _context(spec: PromptSpec) -> int:
    return len(spec.input_ids) + len(spec.output_ids)


def _longest(spec: PromptSpec) -> int:
    return len(spec.input_ids) + spec.sampling.max_tokens


def _counted(spec: PromptSpec) -> int:
    return expected_tokens(len(spec.input_ids), len(spec.output_ids), spec.sampling)
