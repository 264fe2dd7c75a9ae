from collections import Counter

import pytest

from loadgen.spec import SpecError
from loadgen.tenants import Identity, parse_tenants
from loadgen.traces import TraceRow


def rows(keys: list[str | None]) -> list[TraceRow]:
    return [TraceRow(line, 0.0, 1, 1, key=key) for line, key in enumerate(keys, start=2)]


def test_round_robin_takes_turns() -> None:
    rule = parse_tenants("round-robin:2")
    assert rule.assign(rows([None] * 5), 0) == ["tenant-1", "tenant-2"] * 2 + ["tenant-1"]


def test_random_shares_follow_the_seed() -> None:
    rule = parse_tenants("random:big=9,small=1")
    names = rule.assign(rows([None] * 5000), 3)
    assert names == rule.assign(rows([None] * 5000), 3)
    assert Counter(names)["big"] / 5000 == pytest.approx(0.9, abs=0.02)


def test_equal_keys_stay_together() -> None:
    rule = parse_tenants("key:7")
    names = rule.assign(rows([str(number % 40) for number in range(400)]), 0)
    assert names[:40] * 10 == names
    assert len(set(names)) == 7
    assert len(set(rule.assign(rows([None] * 200), 0))) == 7


@pytest.mark.parametrize("text", ["", "4", "round-robin", "round-robin:0", "key:x", "random:", "random:a=0"])
def test_refuses_unknown_rules(text: str) -> None:
    with pytest.raises(SpecError):
        parse_tenants(text)


def test_identity_by_user_field() -> None:
    identity = Identity.parse("user", ["secret"])
    assert identity.body_fields("a") == {"user": "a"}
    assert identity.headers("a") == {"Authorization": "Bearer secret"}


def test_identity_by_key() -> None:
    identity = Identity.parse("key", ["a=ka"])
    assert identity.body_fields("a") == {}
    assert identity.headers("a") == {"Authorization": "Bearer ka"}
    assert identity.headers("b") == {"Authorization": "Bearer b"}


@pytest.mark.parametrize("key", ["c2VjcmV0", "c2VjcmV0cw==", "c2VjcmV0MQ="])
def test_a_key_in_base64_is_not_taken_for_a_tenants_name(key: str) -> None:
    identity = Identity.parse("key", [key, f"a={key}"])
    assert identity.keys == {None: key, "a": key}


def test_identity_by_header_or_not_at_all() -> None:
    assert Identity.parse("header:X-Tenant", []).headers("a") == {"X-Tenant": "a"}
    assert Identity.parse("none", []).headers("a") == {}
    for by in ("header:", "cookie"):
        with pytest.raises(SpecError):
            Identity.parse(by, [])
