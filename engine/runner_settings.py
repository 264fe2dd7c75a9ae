"""What the configuration says to one runner: what to load, and how large its steps may be."""

import os

from engine.config import Config, DeviceConfig, ModelConfig
from engine.messages import Load

MAX_BATCH = {"cpu": 32, "cuda": 256}  # prompts in a step, unless configured
STEP_TOKENS = {"cpu": 256, "cuda": 2048}  # a step computes at most so many, unless configured
PART_TOKENS = {"cpu": None, "cuda": 128}  # least part of a prompt beside decoding rows, while others wait


def load_message(config: Config, model: ModelConfig, device: DeviceConfig) -> Load:
    """What a runner of `model` on `device` is told first."""
    kind = _kind(device)
    return Load(
        model=model.served_name,
        source=model.path,
        device=device.name,
        dtype=None if model.dtype == "auto" else model.dtype,
        page_tokens=config.memory.page_tokens,
        max_model_len=model.max_model_len,
        max_batch=max_batch(config, device),
        max_step_tokens=config.scheduler.max_step_tokens or STEP_TOKENS[kind],
        part_tokens=PART_TOKENS[kind],
        threads=device.threads or _cores_per_cpu_device(config),
        seed=model.seed,
        deterministic=model.deterministic,
        cache_dir=config.cache_dir,
    )


def max_batch(config: Config, device: DeviceConfig) -> int:
    """Prompts in a step of the device."""
    return config.scheduler.max_batch or MAX_BATCH[_kind(device)]


def num_models_on(config: Config, device: DeviceConfig) -> int:
    """Models that share the device."""
    return sum(device in config.devices_of(model) for model in config.models)


def _kind(device: DeviceConfig) -> str:
    return device.name.partition(":")[0]


def _cores_per_cpu_device(config: Config) -> int:
    num_cpu_devices = sum(each.name.startswith("cpu") for each in config.devices)
    return max(1, len(os.sched_getaffinity(0)) // max(1, num_cpu_devices))
