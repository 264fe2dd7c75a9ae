"""The command line of the simulator. What loadgen has too is named and meant as there."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from engine.config import ByteSize, ConfigError, SchedulerConfig, parse_config
from engine.simulator.hardware import (
    FREE_LINK,
    GPUS,
    HOST_LINK,
    LLAMA_8B,
    PEER_LINK,
    Cluster,
    HardwareError,
    read_cost,
)
from loadgen import arrivals, tenants
from loadgen.spec import SpecError, named_numbers, positive, row_slice, whole, whole_range
from loadgen.traces import TraceSpec

Value = TypeVar("Value")

EPILOG = """examples:
  python -m engine.simulator --trace synthetic:rows=200,input=100-2000,output=10-300 --arrivals poisson:8
  python -m engine.simulator --trace azure:FILE --rows 0:300 --arrivals poisson:16 --scheduler policy=fcfs

exit status: 0, or 2 if the trace or an option cannot be used (one line on standard error says why)"""

MAX_BATCH = 256  # prompts in a step, as on GPUs


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run a trace through the real scheduler on simulated GPUs, and report as loadgen does.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    _load_options(parser.add_argument_group("load"))
    _cluster_options(parser.add_argument_group("cluster"))
    _scheduler_options(parser.add_argument_group("scheduler"))
    results = parser.add_argument_group("results")
    results.add_argument("--json", action="store_true", help="print the summary as JSON (default: as text)")
    results.add_argument(
        "--out", type=Path, metavar="DIR", help="write a report like loadgen's there (default: none)"
    )
    return parser


def parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    """Exits with status 2 and a line on stderr if the arguments are not usable."""
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    if unknown := set(options.tenant_weights) - set(options.tenants.names):
        parser.error(f"--tenant-weights names {', '.join(sorted(unknown))}, which is no tenant of this run")
    return options


def make_cluster(options: argparse.Namespace) -> Cluster:
    """Raises HardwareError if the cost model cannot be read."""
    gpu = GPUS[options.gpu]
    if options.cost is not None:
        gpu = replace(gpu, cost=read_cost(options.cost))
    if options.attention_ns is not None:
        gpu = replace(gpu, attention_ns=options.attention_ns)
    page_bytes = LLAMA_8B.page_bytes
    free = options.moves == "free"
    return Cluster(
        num_gpus=options.gpus,
        gpu=gpu,
        layout=LLAMA_8B,
        pool_pages=max(1, options.pool // page_bytes),
        host_pages=options.host // page_bytes,
        peer_pages=options.peer // page_bytes,
        peer_link=FREE_LINK if free else PEER_LINK,
        host_link=FREE_LINK if free else HOST_LINK,
        max_batch=options.scheduler.max_batch or MAX_BATCH,
        max_step_tokens=options.scheduler.max_step_tokens or 2048,
        depth=options.depth,
        lead_ns=round(options.lead_us * 1e3),
        message_ns=round(options.message_us * 1e3),
        plan_ns=round(options.plan_us * 1e3),
    )


def _form(parse_text: Callable[[str], Value]) -> Callable[[str], Value]:
    """A parser whose complaint argparse shows."""

    def convert(text: str) -> Value:
        try:
            return parse_text(text)
        except (SpecError, ConfigError, HardwareError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _least_one(text: str) -> int:
    return whole(text, least=1)


def _output_range(text: str) -> tuple[int, int]:
    return whole_range(text, ":", least=1)


def _not_negative(text: str) -> float:
    return 0.0 if text == "0" else positive(text)


def _scheduler(text: str) -> SchedulerConfig:
    """From 'policy=eevdf,slice_ms=100': the keys of [scheduler], checked as the configuration's are."""
    table: dict[str, object] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        try:
            table[key] = int(value)
        except ValueError:
            table[key] = value if key == "policy" else positive(value)
    return parse_config({"scheduler": table}).scheduler


def _load_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--trace",
        type=_form(TraceSpec.parse),
        help="as loadgen's: azure:FILE, synthetic:rows=N,input=A-B,output=A-B, ...",
    )
    source.add_argument(
        "--beside",
        type=Path,
        metavar="DIR",
        help="what this run of loadgen sent, its figures beside ours",
    )
    add("--rows", type=_form(row_slice), default=(0, None), metavar="FROM:TO", help="rows of the trace (all)")
    add(
        "--arrivals",
        type=_form(arrivals.parse_arrivals),
        default=arrivals.TraceTimes(),
        help="as loadgen's: trace (default), poisson:RATE, ...",
    )
    add("--seed", type=_form(whole), default=0, help="of arrivals, tenants and lengths (default: 0)")
    add("--max-input", type=_form(_least_one), metavar="N", help="cut prompts to so many tokens (not cut)")
    add(
        "--output-range",
        type=_form(_output_range),
        metavar="A:B",
        help="raise or cut outputs to A..B tokens (neither)",
    )
    add(
        "--tenants",
        type=_form(tenants.parse_tenants),
        default=tenants.parse_tenants("round-robin:1"),
        help=f"{tenants.FORMS}; default: one",
    )
    add(
        "--tenant-weights",
        type=_form(named_numbers),
        default={},
        metavar="NAME=W,...",
        help="shares of GPU time relative to each other (1 each)",
    )


def _cluster_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--gpus", type=_form(_least_one), default=1, metavar="N", help="default: 1")
    add("--gpu", choices=sorted(GPUS), default="h200", help="step times (default: %(default)s)")
    add(
        "--cost",
        type=Path,
        metavar="FILE",
        help="step times as the engine fitted them, a JSON CostModel (those of --gpu)",
    )
    add(
        "--attention-ns",
        type=_form(_not_negative),
        metavar="NS",
        help="a prefilled token, for every position before it (that of --gpu)",
    )
    add(
        "--pool",
        type=_form(ByteSize.parse),
        default=ByteSize(2**32),
        metavar="SIZE",
        help="page pool of each GPU, such as 8GiB (4GiB)",
    )
    add(
        "--peer",
        type=_form(ByteSize.parse),
        default=ByteSize(0),
        metavar="SIZE",
        help="lent by other GPUs, in all (0)",
    )
    add(
        "--host",
        type=_form(ByteSize.parse),
        default=ByteSize(100 * 2**30),
        metavar="SIZE",
        help="host tier (100GiB)",
    )
    add("--moves", choices=("measured", "free"), default="measured", help="what links cost (measured)")
    add("--depth", type=_form(_least_one), default=2, help="steps in flight on a runner (default: 2)")
    add(
        "--lead-us", type=_form(_not_negative), default=1500.0, help="a step is launched so long ahead (1500)"
    )
    add("--message-us", type=_form(_not_negative), default=200.0, help="engine to runner (default: 200)")
    add("--plan-us", type=_form(_not_negative), default=0.0, help="time of a plan in the engine (default: 0)")


def _scheduler_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--scheduler",
        type=_form(_scheduler),
        default=_scheduler(""),
        metavar="KEY=VALUE,...",
        help="keys of [scheduler] in fairslice.toml, such as policy=fcfs,gap_ms=400 (its defaults)",
    )
    add(
        "--reserve",
        type=_form(_not_negative),
        metavar="PART",
        help="memory.reserve of fairslice.toml, 0 to 0.5 (its default)",
    )
    add("--max-model-len", type=_form(_least_one), default=131_072, metavar="N", help="tokens (131072)")
