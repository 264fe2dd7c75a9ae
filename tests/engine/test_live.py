"""A running engine tells what it does."""

from pathlib import Path

from engine.messages import GetLive, Live, SliceFate
from tests.engine.engine_process import Client, engine


def ask(client: Client, since_ns: int = 0) -> Live:
    """The engine's next snapshot."""
    client.send(GetLive(serial=1, since_ns=since_ns))
    answers: list[Live] = []
    while not answers:
        answers += [message for message in client.pipe.receive(1.0) if isinstance(message, Live)]
    return answers[0]


def test_a_snapshot_of_devices_memory_and_slices(tmp_path: Path) -> None:
    with engine(tmp_path, lenders=[("cpu:1", "256KiB")]) as client:
        client.submit("p", [1, 2, 3], 12)
        client.wait()
        live = ask(client)
        (model,) = live.models
        assert (model.name, model.stage) == ("tiny", None)
        (device,) = model.devices
        assert (device.name, device.is_up, device.num_running) == ("cpu", True, 0)
        assert {tier.place for tier in model.tiers} >= {"cpu:1", "host"}
        assert [lender.own_segments for lender in live.lenders if lender.device == "cpu:1"] == [None]
        assert model.output_tokens == sum(record.sampled for record in model.ended) == 12
        assert model.ended[-1].fate is SliceFate.LENGTH
        later = ask(client, live.now_ns)
        assert later.now_ns > live.now_ns
        assert later.models[0].ended == []
