import itertools
import os
import resource
import socket
from pathlib import Path

import pytest

from engine.memory import regions
from engine.memory.regions import (
    RegionError,
    create_region,
    map_region,
    receive_descriptors,
    send_descriptors,
)


def test_two_mappings_of_a_region_share_its_bytes() -> None:
    descriptor = create_region("pool", 1 << 20)
    first, second = map_region(descriptor), map_region(descriptor)
    os.close(descriptor)
    assert second[5:8] == bytes(3)
    first[5:8] = b"abc"
    assert second[5:8] == b"abc"


def test_a_region_takes_memory_only_when_touched() -> None:
    descriptor = create_region("pool", 1 << 26)
    assert os.fstat(descriptor).st_blocks == 0
    map_region(descriptor)[0] = 1
    assert os.fstat(descriptor).st_blocks * 512 <= 1 << 21
    os.close(descriptor)


def test_a_region_larger_than_memory_is_refused_with_both_sizes() -> None:
    with pytest.raises(RegionError, match=r"^pool: 1048576\.00 GiB wanted, but the machine has only .* GiB"):
        create_region("pool", 1 << 50)


def test_an_empty_region_cannot_be_mapped() -> None:
    descriptor = create_region("pool", 0)
    with pytest.raises(RegionError, match="cannot map"):
        map_region(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_any_number_of_descriptors_arrives_in_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_DESCRIPTORS_PER_MESSAGE", 7)
    ours, theirs = socket.socketpair()
    sent = [create_region("pool", i + 1) for i in range(count)]
    with ours, theirs:
        send_descriptors(ours, sent)
        send_descriptors(ours, [])
        received = receive_descriptors(theirs)
        assert receive_descriptors(theirs) == []
    assert [os.fstat(descriptor).st_size for descriptor in received] == [i + 1 for i in range(count)]
    assert not any(os.get_inheritable(descriptor) for descriptor in received)
    for descriptor in (*sent, *received):
        os.close(descriptor)


def test_a_peer_that_leaves_is_told() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(EOFError):
        receive_descriptors(theirs)


def test_a_peer_that_leaves_half_way_leaks_nothing() -> None:
    ours, theirs = socket.socketpair()
    descriptor = create_region("pool", 1)
    socket.send_fds(ours, [(2).to_bytes(4, "little")], [descriptor])
    ours.close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with theirs, pytest.raises(EOFError):
        receive_descriptors(theirs)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1  # `theirs` is closed too
    os.close(descriptor)


def test_more_descriptors_than_a_process_may_have_are_an_error_and_none_is_kept() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_descriptors(ours, [ours.fileno()] * 100)
        before = sorted(os.listdir("/proc/self/fd"))
        room_for_few = next(number for number in itertools.count() if str(number) not in before) + 3
        resource.setrlimit(resource.RLIMIT_NOFILE, (room_for_few, hard))
        try:
            with pytest.raises(RegionError, match="too many open files"):
                receive_descriptors(theirs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert sorted(os.listdir("/proc/self/fd")) == before
