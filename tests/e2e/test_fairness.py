"""What fairness promises, of api, engine and runners as processes. Nothing is measured in seconds: bounds
are in GPU time charged, against the longest slice that there was, or in slices of the engine's log."""

from collections.abc import Iterator
from contextlib import closing
from itertools import groupby, pairwise

import pytest

from engine.messages import LiveModel, SliceRecord
from tests.e2e.server import Server, serving, until
from tests.e2e.shares import check_shares

MS = 1_000_000
SLICE_NS = 20 * MS
PLACES = 4  # in the batches of all devices
MANY = 16 * PLACES  # slices: more than any device should let others have without one of its own
LENGTH = 1000  # tokens of an answer that is not meant to end
pytestmark = pytest.mark.slow

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "tiny"
max_model_len = 1024
dtype = "float32"
{devices}
[scheduler]
policy = "{policy}"
target_ms = 100
slice_ms = 20
min_slice_ms = 5
max_batch = {max_batch}
[memory]
host = "4MiB"
[prefix_cache]
enabled = false
"""
DEVICE = '[[devices]]\nname = "cpu:{number}"\nmemory = "64MiB"\nthreads = 1\n'
TENANTS = {
    "light": {"weight": 1.0},
    "heavy": {"weight": 2.0},
    "one": {"weight": 1.0},
    "many": {"weight": 1.0},
    "worker": {"weight": 8.0},  # far below its share, though a step may take long on a busy machine
    "flood": {"weight": 1.0},
}


@pytest.fixture(scope="module", params=[("cfs", 1), ("eevdf", 2)], ids=["cfs-1", "eevdf-2"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of every policy that rotates, on one device and on two."""
    policy, num_devices = request.param
    devices = "".join(DEVICE.format(number=number) for number in range(num_devices))
    config = CONFIG.format(devices=devices, policy=policy, max_batch=PLACES // num_devices)
    with serving(tmp_path_factory.mktemp("fair"), config, TENANTS) as server:
        until(lambda: sum(device.is_up for device in server.model().devices) == num_devices)
        yield server


def slices(model: LiveModel) -> list[SliceRecord]:
    """All that are known, in order of their start."""
    return sorted([*model.ended, *model.in_force], key=lambda record: record.start_ns)


def test_backlogged_tenants_are_served_by_weight(server: Server) -> None:
    with (
        closing(server.complete("light", n=4 * PLACES, max_tokens=LENGTH)),
        closing(server.complete("heavy", n=8 * PLACES, max_tokens=LENGTH)),
    ):
        check_shares(server, {"light": 1.0, "heavy": 2.0}, SLICE_NS)
    server.wait_idle()


def test_many_prompts_buy_nothing(server: Server) -> None:
    with (
        closing(server.complete("one", n=4 * PLACES, max_tokens=LENGTH)),
        closing(server.complete("many", n=100, max_tokens=LENGTH)),
    ):
        check_shares(server, {"one": 1.0, "many": 1.0}, SLICE_NS)
    server.wait_idle()


def waits(records: list[SliceRecord]) -> Iterator[tuple[str, int, int]]:
    """Where, from when and until when a prompt waited, to which these slices were given."""
    yield records[0].device, records[0].arrival_ns, records[0].start_ns
    for before, after in pairwise(records):
        assert before.end_ns is not None
        yield after.device, before.end_ns, after.start_ns


def test_a_flood_of_short_prompts_delays_nobody_by_more_than_the_places(server: Server) -> None:
    """Whoever is below its share gets the next place. Until it runs there, only those begin on that
    device that had been given a place; not the thousands that came earlier."""
    with closing(server.complete("flood", n=3000, max_tokens=1)):
        until(lambda: any(tenant.name == "flood" for tenant in server.model().tenants))
        for _ in range(6):
            assert server.complete("worker", max_tokens=12).answer().status == 200
        model = server.model()
    server.wait_idle()
    (flood,) = (tenant for tenant in model.tenants if tenant.name == "flood")
    assert flood.num_waiting > PLACES  # it lasted
    begun = [(record.device, record.start_ns) for record in slices(model) if record.tenant == "flood"]
    worked = sorted((r for r in slices(model) if r.tenant == "worker"), key=lambda r: (r.prompt, r.start_ns))
    prompts = [list(records) for _, records in groupby(worked, key=lambda record: record.prompt)]
    assert len(prompts) == 6
    for records in prompts:
        for place, since_ns, until_ns in waits(records):
            num_before = sum(since_ns < at_ns < until_ns for device, at_ns in begun if device == place)
            assert num_before <= PLACES // len(model.devices)


def test_no_device_idles_while_work_waits(server: Server) -> None:
    """A place that is free while a prompt waits is given away in the engine's next turn; and the log has
    slices of all devices all the time."""
    with closing(server.complete("one", n=3 * PLACES, max_tokens=LENGTH)):
        until(lambda: any(tenant.num_waiting for tenant in server.model().tenants))
        first_ns, model = server.live().now_ns, server.model()
        while sum((record.end_ns or 0) > first_ns for record in model.ended) < 200:
            before, model = server.model(), server.model()
            assert any(tenant.num_waiting for tenant in before.tenants)
            if any(device.num_running < device.max_batch for device in before.devices):
                assert model.num_slices > before.num_slices
    server.wait_idle()
    begun = [record.device for record in slices(model) if record.start_ns > first_ns]
    for start in range(len(begun) - MANY):
        assert len(set(begun[start : start + MANY])) == len(model.devices)
