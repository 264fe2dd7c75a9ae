"""Links and memory of GPUs, by an NVML that is made up."""

from dataclasses import dataclass, field

import pynvml
import pytest

from engine.gpus import SWITCH, NoGpus, NvmlGpus, visible_handles

NVLINK, READ = pynvml.NVML_P2P_CAPS_INDEX_NVLINK, pynvml.NVML_P2P_CAPS_INDEX_READ
GPU = 0  # NVML_NVLINK_DEVICE_TYPE_GPU


@dataclass
class Pci:
    busId: str


@dataclass
class Memory:
    free: int


@dataclass
class FakeGpu:
    """`links` are (type, bus id of the other end, version); `peers` what it can do with whom, by bus id."""

    bus: str
    links: list[tuple[int, str, int]] = field(default_factory=list)
    peers: dict[tuple[str, int], bool] = field(default_factory=dict)
    ancestors: dict[str, int] = field(default_factory=dict)
    generation: int = 5
    free: int = 1000

    @property
    def uuid(self) -> str:
        return f"GPU-{self.bus}-uuid"


class FakeNvml:
    """The functions that are asked, over fake GPUs as handles."""

    def __init__(self, gpus: list[FakeGpu]) -> None:
        self.gpus = gpus

    def nvmlInit(self) -> None:
        if not self.gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Memory:
        if gpu.free < 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return Memory(gpu.free)

    def nvmlDeviceGetPciInfo(self, gpu: FakeGpu) -> Pci:
        return Pci(gpu.bus)

    def nvmlDeviceGetP2PStatus(self, gpu: FakeGpu, other: FakeGpu, capability: int) -> int:
        can = gpu.peers.get((other.bus, capability), False)
        return pynvml.NVML_P2P_STATUS_OK if can else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetNvLinkState(self, gpu: FakeGpu, link: int) -> int:
        self._link(gpu, link)
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu: FakeGpu, link: int) -> int:
        return self._link(gpu, link)[0]

    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu: FakeGpu, link: int) -> Pci:
        return Pci(self._link(gpu, link)[1])

    def nvmlDeviceGetNvLinkVersion(self, gpu: FakeGpu, link: int) -> int:
        return self._link(gpu, link)[2]

    def _link(self, gpu: FakeGpu, link: int) -> tuple[int, str, int]:
        if link >= len(gpu.links):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return gpu.links[link]

    def nvmlDeviceGetTopologyCommonAncestor(self, gpu: FakeGpu, other: FakeGpu) -> int:
        return gpu.ancestors[other.bus]

    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu: FakeGpu) -> int:
        return 16

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: FakeGpu) -> int:
        return gpu.generation


def machine(monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu) -> FakeNvml:
    nvml = FakeNvml(list(gpus))
    for name in (name for name in dir(nvml) if name.startswith("nvml")):
        monkeypatch.setattr(pynvml, name, getattr(nvml, name))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return nvml


def join(one: FakeGpu, other: FakeGpu, num_links: int) -> None:
    """NVLinks of the fourth version from one to the other."""
    for gpu, peer in ((one, other), (other, one)):
        gpu.links += [(GPU, peer.bus, pynvml.NVML_NVLINK_VERSION_4_0)] * num_links
        gpu.peers[peer.bus, NVLINK] = True


def test_nvlinks_are_added_up_and_pcie_is_worth_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = FakeGpu("a"), FakeGpu("b"), FakeGpu("c", generation=4)
    join(a, b, 4)
    join(a, c, 2)
    for gpu, peer in ((b, c), (c, b)):
        gpu.peers[peer.bus, READ] = True
        gpu.ancestors[peer.bus] = pynvml.NVML_TOPOLOGY_SYSTEM
    machine(monkeypatch, a, b, c)
    links = NvmlGpus.open().links(["cuda:0", "cuda:1", "cuda:2", "cpu:0", "cuda:7"])
    assert links["cuda:0", "cuda:1"] == links["cuda:1", "cuda:0"] == 100e9
    assert links["cuda:0", "cuda:2"] == 50e9
    assert links["cuda:1", "cuda:2"] == pytest.approx(16 * 1.969e9 * 0.5)
    assert links["cuda:1", "host"] == pytest.approx(16 * 3.938e9)
    assert not any("cpu:0" in pair or "cuda:7" in pair for pair in links)


@pytest.mark.parametrize(
    ("version", "link_bytes_per_s"),
    [
        (pynvml.NVML_NVLINK_VERSION_1_0, 20e9),
        (pynvml.NVML_NVLINK_VERSION_3_1, 25e9),
        (pynvml.NVML_NVLINK_VERSION_4_0, 25e9),
        (pynvml.NVML_NVLINK_VERSION_5_0, 50e9),
    ],
)
def test_gpus_behind_one_switch_have_all_their_links(
    monkeypatch: pytest.MonkeyPatch, version: int, link_bytes_per_s: float
) -> None:
    gpus = [FakeGpu(bus, links=[(SWITCH, "switch", version)] * 18) for bus in "ab"]
    gpus[0].peers["b", NVLINK] = gpus[1].peers["a", NVLINK] = True
    machine(monkeypatch, *gpus)
    links = NvmlGpus.open().links(["cuda:0", "cuda:1"])
    assert links["cuda:0", "cuda:1"] == 18 * link_bytes_per_s


def test_a_pair_without_peer_access_has_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, FakeGpu("a"), FakeGpu("b"))
    assert set(NvmlGpus.open().links(["cuda:0", "cuda:1"])) == {("cuda:0", "host"), ("cuda:1", "host")}


def test_names_follow_the_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = FakeGpu("a", free=1), FakeGpu("b", free=2), FakeGpu("c", free=3)
    machine(monkeypatch, a, b, c)
    assert visible_handles({}) == [a, b, c]
    assert visible_handles({"CUDA_VISIBLE_DEVICES": "2,0"}) == [c, a]
    assert visible_handles({"CUDA_VISIBLE_DEVICES": "GPU-b, 9, 0"}) == [b]
    assert visible_handles({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert NvmlGpus.open().free_bytes("cuda:0") == 2
    assert NvmlGpus.open().free_bytes("cuda") == 2
    assert NvmlGpus.open().free_bytes("cuda:1") is None


def test_a_lost_gpu_has_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, FakeGpu("a", free=-1))
    assert NvmlGpus.open().free_bytes("cuda:0") is None


def test_a_machine_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    gpus = NvmlGpus.open()
    assert isinstance(gpus, NoGpus)
    assert gpus.links(["cuda:0", "cuda:1"]) == {}
    assert gpus.free_bytes("cuda:0") is None
