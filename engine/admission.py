"""Bounded admission: the one place where the engine says no, however many api processes ask."""

from dataclasses import dataclass

from engine.config import QueueConfig
from engine.messages import PromptSpec, Submit


class Refusal(Exception):
    """A request is not accepted. `code` is an OpenAI error code, `retry_after_s` when to ask again."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Holding:
    """What somebody has in the engine: prompts, and tokens of their contexts at their longest."""

    num_prompts: int = 0
    num_tokens: int = 0


class Admission:
    """Counts what was accepted and is not finished, in all and by tenant."""

    def __init__(self, bounds: QueueConfig) -> None:
        self._bounds = bounds
        self._all = Holding()
        self._tenants: dict[str, Holding] = {}
        self._prompts: dict[str, tuple[str, int]] = {}  # prompt id -> tenant, tokens

    @property
    def num_prompts(self) -> int:
        return self._all.num_prompts

    def admit(self, submit: Submit, max_model_len: int) -> None:
        """Take all prompts of the request, or raise Refusal and take none. A resubmitted request was
        accepted before: no bound of the queue turns it away."""
        for spec in submit.prompts:
            if _longest(spec) > max_model_len:
                raise Refusal(
                    "context_length_exceeded",
                    f"the prompt has {len(spec.input_ids)} tokens and asks for {spec.sampling.max_tokens} more; "
                    f"the longest context is {max_model_len} tokens",
                )
        new = [spec for spec in submit.prompts if spec.prompt_id not in self._prompts]
        if not submit.resubmitted:
            self._check_bounds(submit.tenant, new)
        for spec in new:
            self._add(submit.tenant, spec)

    def release(self, prompt_id: str) -> None:
        """The prompt has ended."""
        tenant, num_tokens = self._prompts.pop(prompt_id)
        holding = self._tenants[tenant]
        for each in (self._all, holding):
            each.num_prompts -= 1
            each.num_tokens -= num_tokens
        if not holding.num_prompts:
            del self._tenants[tenant]

    def _check_bounds(self, tenant: str, specs: list[PromptSpec]) -> None:
        bounds = self._bounds
        held = self._tenants.get(tenant, Holding()).num_prompts
        limit = bounds.max_prompts_per_tenant
        if limit is not None and held + len(specs) > limit:
            raise Refusal("rate_limit_exceeded", f"{held} prompts are open, of {limit} allowed", 1.0)
        if self._all.num_prompts + len(specs) > bounds.max_prompts:
            message = f"the queue is full: {self._all.num_prompts} prompts of {bounds.max_prompts}"
            raise Refusal("queue_full", message, 1.0)
        num_tokens = self._all.num_tokens + sum(map(_longest, specs))
        if num_tokens > bounds.max_tokens:
            message = f"the queue is full: {self._all.num_tokens} tokens of {bounds.max_tokens}"
            raise Refusal("queue_full", message, 1.0)

    def _add(self, tenant: str, spec: PromptSpec) -> None:
        num_tokens = _longest(spec)
        self._prompts[spec.prompt_id] = (tenant, num_tokens)
        for holding in (self._all, self._tenants.setdefault(tenant, Holding())):
            holding.num_prompts += 1
            holding.num_tokens += num_tokens

    def check_integrity(self) -> None:
        assert self._all.num_prompts == len(self._prompts)
        assert self._all.num_tokens == sum(tokens for _, tokens in self._prompts.values())
        assert self._all.num_prompts == sum(each.num_prompts for each in self._tenants.values())


def _longest(spec: PromptSpec) -> int:
    return len(spec.input_ids) + spec.sampling.max_tokens
