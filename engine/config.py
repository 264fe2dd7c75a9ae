"""The configuration: one TOML file, read once, validated, frozen; each class is passed only its part.

Found in this order: `--config`, the environment's FAIRSLICE_CONFIG, `fairslice.toml` in the working
directory, else the defaults below: the embedded model on one CPU device.
"""

import argparse
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[float, Meta(gt=0, le=3_600_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
DeviceName = Annotated[str, Meta(pattern=r"^(cpu|cuda)(:\d+)?$")]
Origin = Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\sA-Z]+)$")]  # as browsers send it, or all
LinkEnd = Annotated[str, Meta(pattern=r"^((cpu|cuda)(:\d+)?|host)$")]

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line: the key, what is wrong, what is allowed."""


class ByteSize(int):
    """A number of bytes: an integer, or a string such as "512MiB" or "1.5GiB" (binary units)."""

    @classmethod
    def parse(cls, value: object) -> "ByteSize":
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        pattern = r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*"
        match = re.fullmatch(pattern, value.lower()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f'expected a size such as 1073741824, "512MiB" or "1.5GiB", got {value!r}')
        return cls(float(match[1]) * _UNITS[match[2]])


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table: unknown keys are errors."""


class DeviceConfig(Table, frozen=True, kw_only=True):
    """A device that runs models or lends its memory. `memory` is the size of its page pool; on a GPU it may
    be left out: then the pool takes `memory_fraction` of what is free (once the weights are loaded, where
    there are any)."""

    name: DeviceName
    mode: Literal["serve", "lend"] = "serve"  # lend: no model runs here, whatever models.devices say
    memory: ByteSize | None = None
    lend: ByteSize | None = None  # of the pool, at most; None: whatever is not needed here
    keep: ByteSize = ByteSize(0)  # of the pool, free for its own use before any is lent
    leave_free: ByteSize | None = None  # of the device, to other programs: the pool shrinks if there is less
    memory_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.9
    threads: Positive | None = None  # of a cpu device; None: the cores, shared among the cpu devices


class ModelConfig(Table, frozen=True, kw_only=True):
    """A model to serve, on all of `devices` (default: every device)."""

    path: str | None = None  # HF folder, .gguf file, "dummy:CONFIG"; None: the embedded Gemma 3 270M
    name: str | None = None  # served model name; None: made from the path
    devices: tuple[DeviceName, ...] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on GPUs, else float32
    max_model_len: Positive | None = None
    seed: int = 0  # of dummy weights
    deterministic: bool = False  # the same tokens for a prompt whatever is computed beside it; slower on GPUs

    @property
    def served_name(self) -> str:
        """The name by which clients ask for the model."""
        if self.name is not None:
            return self.name
        if self.path is None:
            return "gemma-3-270m"
        bare = Path(self.path.removeprefix("dummy:"))
        return bare.parent.name if bare.name == "config.json" else re.sub(r"\.(gguf|json)$", "", bare.name)


class SchedulerConfig(Table, frozen=True, kw_only=True):
    """How GPU time is shared. See docs/policies.md."""

    policy: Literal["cfs", "fcfs", "eevdf", "vtc"] = "cfs"
    target_ms: Milliseconds = 1000.0  # every waiting prompt should have had a slice within this time
    slice_ms: Milliseconds = 150.0  # the longest slice under contention
    request_ms: Milliseconds = 40.0  # of GPU time of its own, after which a prompt goes behind others
    min_slice_ms: Milliseconds = 25.0  # a slice is not preempted before this: the minimum granularity
    gap_ms: Milliseconds = 500.0  # a prompt that waits longer than this for its next token goes first
    patience_ms: Milliseconds = 7000.0  # a prompt older than this goes before younger ones of its tenant
    floor_tokens_per_s: Annotated[float, Meta(gt=0, le=10_000)] = 20.0  # for each prompt, if capacity allows
    max_floor_tokens_per_s: Annotated[float, Meta(gt=0, le=10_000)] = 100.0  # that a request may wish
    max_batch: Annotated[int, Meta(ge=1, le=1024)] | None = None  # None: 32 on cpu, 256 on GPUs
    max_step_tokens: Annotated[int, Meta(ge=16, le=65536)] | None = None  # None: 256 on cpu, 2048 on GPUs
    first_slices: Positive = 8  # prompts of one tenant that may be before their first token at once


class LinkConfig(Table, frozen=True, kw_only=True):
    """A link between two devices, or a device and "host", in both directions: the faster is preferred, and
    cpu devices pretend to be joined by it: a move takes at least `delay_ms + bytes / bytes_per_s`."""

    between: tuple[LinkEnd, LinkEnd]
    delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    bytes_per_s: ByteSize | None = None


class MemoryConfig(Table, frozen=True, kw_only=True):
    """Pages and tiers. Memory is lent in segments; the default size is 256 MiB, on cpu devices a sixteenth of
    the pool."""

    page_tokens: Literal[8, 16, 32, 64] = 16
    host: ByteSize = ByteSize(2 * 2**30)  # the host tier, for all models together
    reserve: Annotated[float, Meta(ge=0, le=0.5)] = 0.0  # of a pool, kept free under contention
    segment: ByteSize | None = None
    links: tuple[LinkConfig, ...] = ()


class PrefixCacheConfig(Table, frozen=True, kw_only=True):
    """Contexts of prompts that ended stay while there is room, and prompts that begin alike share pages."""

    enabled: bool = True


class QueueConfig(Table, frozen=True, kw_only=True):
    """Admission. What is over a bound is refused at once with 429."""

    max_prompts: Positive = 4096  # accepted and not finished, of all tenants
    max_prompts_per_tenant: Positive | None = None
    max_tokens: Positive = 16 * 2**20  # context lengths of those, summed; unset max_tokens count 1,024
    reconnect_s: Seconds = 30.0  # an api process that stays away longer loses its prompts


class ServerConfig(Table, frozen=True, kw_only=True):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    max_body: ByteSize = ByteSize(8 * 2**20)
    max_prompts_per_request: Positive = 128  # prompts times n
    default_max_tokens: Positive | None = None  # None: 16 for completions (as OpenAI), the rest for chat
    drain_s: Seconds = 30.0  # running streams may finish for this long after SIGTERM
    log_format: Literal["text", "json"] = "text"
    keys: str | None = None  # file of API keys; None: everybody is one tenant, without a key
    allowed_origins: tuple[Origin, ...] = ()  # web pages whose scripts may ask us (CORS)
    open: bool = False  # needed to serve without keys on an address that other machines reach


class EngineConfig(Table, frozen=True, kw_only=True):
    socket: str | None = None  # Unix socket between api and engine; None: in the runtime directory, by port
    restart_s: Seconds = 1.0  # pause before a process that died is started again


class Config(Table, frozen=True, kw_only=True):
    models: tuple[ModelConfig, ...] = (ModelConfig(),)
    devices: tuple[DeviceConfig, ...] = (DeviceConfig(name="cpu", memory=ByteSize(2**30)),)
    scheduler: SchedulerConfig = SchedulerConfig()
    memory: MemoryConfig = MemoryConfig()
    prefix_cache: PrefixCacheConfig = PrefixCacheConfig()
    queue: QueueConfig = QueueConfig()
    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    cache_dir: str | None = None  # None: fairslice under the user's cache directory

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        _require(bool(self.devices), "devices", "at least one [[devices]] table is needed")
        _require(bool(self.models), "models", "at least one [[models]] table is needed")
        _require(len(set(names)) == len(names), "devices.name", f"device named twice in {names}")
        _require(not {"cuda", "cuda:0"} <= {*names}, "devices.name", "cuda and cuda:0 are the same device")
        for device in self.devices:
            sized = device.memory is not None or device.name.startswith("cuda")
            _require(sized, "devices.memory", f'{device.name} needs a size, such as memory = "2GiB"')
        served = [model.served_name for model in self.models]
        _require(len(set(served)) == len(served), "models.name", f"served model name used twice in {served}")
        serving = {device.name for device in self.devices if device.mode == "serve"}
        _require(bool(serving), "devices.mode", "all devices lend, so no model could run")
        for link in self.memory.links:
            ends = set(link.between) - {*names, "host"}
            _require(not ends, "memory.links.between", f"{sorted(ends)} not among the devices {names}")
            _require(link.bytes_per_s != 0, "memory.links.bytes_per_s", "nothing would pass at 0")
        for model in self.models:
            unknown = set(model.devices or ()) - set(names)
            _require(not unknown, "models.devices", f"{sorted(unknown)} not among the devices {names}")
            rounds = model.deterministic and model.dtype not in ("auto", "float32")
            on_cpu = [device.name for device in self.devices_of(model) if device.name.startswith("cpu")]
            _require(
                not (rounds and on_cpu),
                "models.deterministic",
                f"{on_cpu} can keep this for float32 only, and models.dtype is {model.dtype}",
            )
            named = set(model.devices or serving)
            _require(bool(named & serving), "models.devices", f"{sorted(named)} all lend (devices.mode)")
        low, high = self.scheduler.min_slice_ms, self.scheduler.slice_ms
        _require(low <= high, "scheduler.min_slice_ms", f"{low} is above scheduler.slice_ms, {high}")
        low, high = self.scheduler.floor_tokens_per_s, self.scheduler.max_floor_tokens_per_s
        _require(
            low <= high,
            "scheduler.floor_tokens_per_s",
            f"{low} is above scheduler.max_floor_tokens_per_s, {high}",
        )

    def devices_of(self, model: ModelConfig) -> list[DeviceConfig]:
        """Where a model runs."""
        serving = [device for device in self.devices if device.mode == "serve"]
        return [device for device in serving if model.devices is None or device.name in model.devices]

    @property
    def lenders(self) -> list[DeviceConfig]:
        """Devices on which nothing runs: all their memory is lent."""
        busy = {device.name for model in self.models for device in self.devices_of(model)}
        return [device for device in self.devices if device.name not in busy]

    @property
    def has_gpus(self) -> bool:
        """Whether a GPU is among the devices."""
        return any(device.name.startswith("cuda") for device in self.devices)

    @property
    def link_speeds(self) -> dict[tuple[str, str], float]:
        """Bytes per second of the links that are described, in both directions."""
        known = [link for link in self.memory.links if link.bytes_per_s is not None]
        forth = {link.between: float(link.bytes_per_s or 0) for link in known}
        return forth | {(b, a): speed for (a, b), speed in forth.items()}

    @property
    def socket_path(self) -> str:
        """Where the engine listens for api processes."""
        if self.engine.socket is not None:
            return self.engine.socket
        runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        return str(Path(runtime) / f"fairslice-{os.getuid()}" / f"engine-{self.server.port}.sock")


def config_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A command line with `--config`, whose value is for `load_config`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration (default: what FAIRSLICE_CONFIG names, else fairslice.toml, if there)",
    )
    return parser


def load_config(path: str | None = None) -> Config:
    """Read and validate the configuration; `path` is what the command line named, if it did.

    Raises ConfigError.
    """
    named = path or os.environ.get("FAIRSLICE_CONFIG")
    file = Path(named or "fairslice.toml")
    if named is None and not file.exists():
        return Config()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    try:
        return parse_config(table)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse_config(table: dict[str, object]) -> Config:
    """Validate a table as read from TOML. Raises ConfigError."""
    try:
        return msgspec.convert(table, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from None


def _decode(kind: type, value: object) -> object:
    if kind is ByteSize:
        return ByteSize.parse(value)
    raise TypeError(f"no way to read a {kind.__name__}")


def _require(condition: bool, key: str, problem: str) -> None:
    if not condition:
        raise ValueError(f"{key}: {problem}")


def _explain(message: str) -> str:
    """Turn msgspec's message ("... - at `$.devices[0].memory`") into "devices[0].memory: ..."."""
    problem, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", problem)
    if unknown is None:
        return f"{path}: {problem[0].lower()}{problem[1:]}" if path else problem
    allowed = ", ".join(field.name for field in msgspec.structs.fields(_table_at(path)))
    key = f"{path}.{unknown[1]}" if path else unknown[1]
    return f"{key}: unknown key; allowed here: {allowed}"


def _table_at(path: str) -> type[Table]:
    """The table that a path such as "devices[0]" leads to."""
    tables: dict[str, type[Table]] = {
        "models": ModelConfig,
        "devices": DeviceConfig,
        "scheduler": SchedulerConfig,
        "memory": MemoryConfig,
        "memory.links": LinkConfig,
        "prefix_cache": PrefixCacheConfig,
        "queue": QueueConfig,
        "server": ServerConfig,
        "engine": EngineConfig,
    }
    return tables.get(re.sub(r"\[\d+\]", "", path), Config)
