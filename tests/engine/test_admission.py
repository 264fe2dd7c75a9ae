"""Who is let in: the queue's bounds, and each tenant's limits."""

from typing import Any

import pytest

from engine.admission import Admission, Refusal
from engine.config import QueueConfig
from engine.messages import PromptSpec, Sampling, Submit, TenantLimits

MAX_MODEL_LEN = 131_072
TEN_TOKENS = Sampling(max_tokens=10)
ANY_LENGTH = Sampling(max_tokens=100_000, is_open_ended=True)


class Door:
    """An admission on a clock of the test's."""

    def __init__(self, **bounds: int) -> None:
        self.now_s = 0.0
        self.admission = Admission(QueueConfig(**bounds), lambda: int(self.now_s * 1e9))
        self._next = 0

    def ask(self, tenant: str = "a", *, ids: int = 10, prompts: int = 1, resubmitted: bool = False,
            sampling: Sampling = TEN_TOKENS, outputs: int = 0, **limits: int) -> list[str]:  # fmt: skip
        """Ids of the prompts that were let in. Raises Refusal, after which nothing may be kept."""
        self._next += 1
        specs = [
            PromptSpec(
                prompt_id=f"{self._next}-{index}",
                input_ids=[1] * ids,
                sampling=sampling,
                output_ids=[1] * outputs,
            )
            for index in range(prompts)
        ]
        submit = Submit(
            request_id=str(self._next),
            model="m",
            prompts=specs,
            tenant=tenant,
            limits=TenantLimits(**limits) if limits else None,
            resubmitted=resubmitted,
        )
        before = self.admission.num_prompts
        try:
            self.admission.admit(submit, MAX_MODEL_LEN)
        except Refusal:
            assert self.admission.num_prompts == before
            raise
        finally:
            self.admission.check_integrity()
        return [spec.prompt_id for spec in specs]

    def refused(self, tenant: str = "a", **wish: Any) -> Refusal:
        with pytest.raises(Refusal) as caught:
            self.ask(tenant, **wish)
        return caught.value


def test_bounds_of_the_queue() -> None:
    door = Door(max_prompts=3, max_tokens=100)
    first, _ = door.ask(prompts=2)
    assert door.refused(prompts=2).code == "queue_full"
    assert door.refused(ids=60).code == "queue_full"
    door.admission.release(first)
    door.ask("b", ids=60)
    door.ask(prompts=9, resubmitted=True)


def test_answers_of_any_length_count_by_an_estimate_until_they_are_longer() -> None:
    door = Door()
    for _ in range(4096):
        door.ask(ids=3072, sampling=ANY_LENGTH)
    assert "4096 prompts" in door.refused(sampling=ANY_LENGTH).message

    door = Door(max_tokens=3000)
    (held,) = door.ask(ids=100, sampling=ANY_LENGTH)
    door.admission.generated(held, 1024)
    door.ask(ids=100, sampling=ANY_LENGTH, max_tokens=2248)
    door.admission.generated(held, 500)
    door.admission.check_integrity()
    assert "2768 tokens" in door.refused(max_tokens=2767, ids=10).message
    assert "2748 tokens of 3000" in door.refused(ids=300).message
    door.admission.release(held)
    door.ask(ids=300)


def test_an_explicit_length_counts_in_full_and_an_estimate_no_more_than_the_context_holds() -> None:
    assert Door(max_tokens=100_009).refused(sampling=Sampling(max_tokens=100_000)).code == "queue_full"
    Door(max_tokens=60).ask(ids=50, sampling=Sampling(max_tokens=10, is_open_ended=True))
    door = Door(max_tokens=3000)
    door.ask(ids=100, outputs=2500, sampling=ANY_LENGTH, resubmitted=True)
    assert "2600 tokens of 3000" in door.refused(ids=391).message


def test_a_tenant_has_its_own_bound_on_open_prompts() -> None:
    door = Door(max_prompts_per_tenant=2)
    door.ask(prompts=2)
    assert door.refused().code == "rate_limit_exceeded"
    door.ask("b")
    door.ask(max_prompts=3)
    assert "3 allowed" in door.refused(max_prompts=3).message


def test_a_tenants_bound_on_tokens_in_use() -> None:
    door = Door()
    (held,) = door.ask(max_tokens=50)
    door.ask(max_tokens=50)
    assert "60 tokens" in door.refused(max_tokens=50).message
    door.admission.release(held)
    door.ask(max_tokens=50)


def test_requests_per_minute() -> None:
    door = Door()
    for _ in range(2):
        door.ask(requests_per_minute=2)
    refusal = door.refused(requests_per_minute=2)
    assert (refusal.code, refusal.retry_after_s) == ("rate_limit_exceeded", 30.0)
    door.ask("b", requests_per_minute=2)
    door.now_s = 30
    door.ask(requests_per_minute=2)


def test_tokens_per_minute_count_prompts_at_once_and_answers_as_they_come() -> None:
    door = Door()
    (prompt_id,) = door.ask(ids=100, tokens_per_minute=120)
    state = door.admission.rates("a")["tokens"]
    assert (state.limit, state.remaining, state.reset_s) == (120, 20, 50.0)
    door.admission.generated(prompt_id, 40)
    door.admission.release(prompt_id)
    assert door.admission.rates("a")["tokens"].remaining == 0
    assert door.refused(ids=10, tokens_per_minute=120).retry_after_s == 15.0
    door.now_s = 15
    door.ask(ids=10, tokens_per_minute=120)


def test_a_refused_request_costs_nothing_and_a_resubmitted_one_is_not_charged_again() -> None:
    door = Door()
    door.ask(ids=100, tokens_per_minute=120)
    for _ in range(5):
        door.refused(ids=100, tokens_per_minute=120)
    door.ask(ids=100, tokens_per_minute=120, resubmitted=True)
    assert door.admission.rates("a")["tokens"].remaining == 20


def test_without_limits_nothing_is_kept_of_a_tenant() -> None:
    door = Door()
    (prompt_id,) = door.ask()
    assert door.admission.rates("a") == {}
    door.admission.generated(prompt_id, 5)
    door.admission.release(prompt_id)
    assert door.admission.rates("a") == {}
    door.admission.check_integrity()
