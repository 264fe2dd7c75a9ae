"""`python -m engine.memory_report`: pools, leases and links as measured."""

import argparse
import sys
from typing import Any

import pynvml

from engine.config import ConfigError, config_parser, load_config
from engine.messages import GetStats, Stats
from engine.questions import NoAnswer, Questions
from engine.socket_folder import ensure_socket_folder

EPILOG = """examples:
  python -m engine.memory_report --config /etc/fairslice/fairslice.toml

exit status: 0, also where no engine runs; 2 with one line for a configuration that cannot be used"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    return config_parser(
        prog, "Print pools, leases and links as measured: of the running engine, and of the machine.", EPILOG
    )


def main(arguments: list[str] | None = None, prog: str = "python -m engine.memory_report") -> int:
    """Returns the exit status: 0, or 2 with one line for a configuration that cannot be used."""
    options = make_parser(prog).parse_args(arguments)
    try:
        config = load_config(options.config)
        ensure_socket_folder(config)
    except ConfigError as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 2
    try:
        with Questions(config.socket_path, "memory report") as questions:
            lines = describe_engine(questions.ask(GetStats(serial=1), Stats).status)
    except NoAnswer as error:
        lines = [str(error)]
    print("\n".join([*lines, "", *describe_machine()]))
    return 0


def describe_engine(status: dict[str, Any]) -> list[str]:
    """Pools, paths and leases, as lines."""
    lines = []
    for model, of_model in status["models"].items():
        if "devices" not in of_model:
            lines.append(f"{model}: {of_model.get('progress', 'not ready')}")
            continue
        page_mib = of_model["page_bytes"] / 2**20
        lines.append(
            f"{model}: pages of {page_mib:.3g} MiB, compute waited {of_model['wait_s']:.3f} s for moves"
        )
        pools = {
            **of_model["devices"],
            **{f"lent by {n}" if n != "host" else n: t for n, t in of_model["tiers"].items()},
        }
        for name, pool in pools.items():
            gib = pool["pages"] * page_mib / 1024
            lines.append(
                f"  {name:<20} {pool['pages_used']:>9,} of {pool['pages']:>9,} pages ({gib:.2f} GiB)"
            )
        for path in of_model["paths"]:
            rate = f"{path['gb_per_s']:8.2f} GB/s" if path["gb_per_s"] is not None else "        -"
            moved = f"{path['bytes'] / 2**30:9.3f} GiB"
            lines.append(f"  {path['src']:>8} -> {path['dst']:<8} {moved} {rate}")
    for name, lender in status["lenders"].items():
        leased = ", ".join(f"{count} to {model}" for model, count in lender["leased"].items()) or "none"
        lines.append(
            f"lender {name}: {lender['segments']} segments of {lender['segment_bytes'] / 2**20:.3g} MiB; "
            f"leased: {leased}; on offer: {lender['on_offer']}; on their way back: {lender['recalled']}"
        )
    return lines


def describe_machine() -> list[str]:
    """GPUs, their memory and how they are linked, by NVML."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [f"no NVIDIA GPUs: {error}"]
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        lines = []
        for index, handle in enumerate(handles):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            free_gib, total_gib = memory.free / 2**30, memory.total / 2**30
            lines.append(
                f"GPU {index}: {pynvml.nvmlDeviceGetName(handle)}, {free_gib:.1f} of {total_gib:.1f} GiB free"
            )
            peers = [
                peer for peer, other in enumerate(handles) if peer != index and _has_nvlink(handle, other)
            ]
            lines.append(f"  NVLink to: {', '.join(map(str, peers)) or 'none'}")
        return lines
    finally:
        pynvml.nvmlShutdown()


def _has_nvlink(handle: object, other: object) -> bool:
    try:
        found = pynvml.nvmlDeviceGetP2PStatus(handle, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except pynvml.NVMLError:
        return False
    return bool(found == pynvml.NVML_P2P_STATUS_OK)


if __name__ == "__main__":
    sys.exit(main())
