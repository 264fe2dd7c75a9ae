"""How many descriptors a process asks for."""

import resource

import pytest

from engine.descriptors import MAX_DESCRIPTORS, allow_many_descriptors

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 4096, 4096),
        (1024, 2**20, MAX_DESCRIPTORS),
        (1024, UNLIMITED, MAX_DESCRIPTORS),
        (2**19, 2**20, None),
        (UNLIMITED, UNLIMITED, None),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_and_needs_to_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    allow_many_descriptors()
    assert asked == ([] if expected is None else [(expected, hard)])
