"""What the engine's process asks of the operating system."""

import pytest

from engine import process
from engine.config import ConfigError, parse_config
from engine.process import check_memory

HUGE = 2**40


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"memory": {"host": "1TiB"}}, "memory.host"),
        (
            {"devices": [{"name": "cpu:0", "memory": 1}, {"name": "cpu:1", "memory": HUGE}]},
            "devices[1].memory",
        ),
    ],
)
def test_more_memory_than_there_can_be_is_refused_by_key(
    table: dict[str, object], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "limit_bytes", lambda: 2**37)
    with pytest.raises(ConfigError) as raised:
        check_memory(parse_config(table))
    wanted = "1024.0 GiB wanted, but this machine can have no more than 128.0 GiB"
    assert str(raised.value) == f"{key}: {wanted}"


@pytest.mark.parametrize("limit", [HUGE, None])
def test_what_can_be_is_not_refused(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "limit_bytes", lambda: limit)
    check_memory(parse_config({"memory": {"host": HUGE}}))
    check_memory(parse_config({"devices": [{"name": "cuda:0", "memory": 2 * HUGE}]}))  # of another kind
