"""`python -m engine.simulator`: exit status 0, or 2 if the trace or an option cannot be used."""

import argparse
import sys
from datetime import datetime
from time import perf_counter

import msgspec

from engine.config import MemoryConfig
from engine.planner import PlannerSettings
from engine.simulator.hardware import Cluster, HardwareError
from engine.simulator.options import make_cluster, parse
from engine.simulator.simulation import Machine, Simulation
from engine.simulator.workload import read_schedule, sent_in
from loadgen.arrivals import ClosedLoop
from loadgen.plan import Sending
from loadgen.report import REPORT_FILE, write_report
from loadgen.results import LoadError, RunInfo, load_run
from loadgen.spec import SpecError
from loadgen.stats import Summary, summarize
from loadgen.tables import comparison, print_lines
from loadgen.traces import TraceError


def main(arguments: list[str] | None = None, prog: str = "python -m engine.simulator") -> int:
    options = parse(arguments, prog)
    try:
        measured = None if options.beside is None else load_run(options.beside)
        sendings = read_schedule(options) if measured is None else sent_in(options.beside, measured[1])
        cluster = make_cluster(options)
        _check_fit(sendings, cluster)
    except (TraceError, SpecError, HardwareError, LoadError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    began_s = perf_counter()
    info = _describe(options, sendings, None if measured is None else measured[0])
    simulation = Simulation(
        cluster,
        options.scheduler.policy,
        _settings(options),
        sendings,
        info.tenant_weights,
        closed_loop=options.arrivals if isinstance(options.arrivals, ClosedLoop) else None,
    )
    records = simulation.run()
    took_s = perf_counter() - began_s
    summary = summarize(info, records)
    machine = simulation.machine()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_report(options.out, info, records)
    if options.json:
        print(msgspec.json.encode({"summary": summary, "machine": machine, "took_s": took_s}).decode())
        return 0
    if measured is None:
        print("\n".join(print_lines(info, summary)))
    else:
        print_beside(summarize(*measured), summary)
    _print_machine(machine, cluster, took_s)
    if options.out is not None:
        print(f"report: {options.out / REPORT_FILE}")
    return 0


def print_beside(measured: Summary, simulated: Summary) -> None:
    print(f"{'':<30}{'measured':>26}{'simulated':>26}")
    for label, *cells in comparison((measured, simulated)):
        print(f"{label:<30}" + "".join(f"{cell:>26}" for cell in cells))


def _print_machine(machine: Machine, cluster: Cluster, took_s: float) -> None:
    gpu_s = machine.end_ns * cluster.num_gpus / 1e9
    print(f"{'GPUs busy':<30}{machine.busy_fraction(cluster.num_gpus):.1%}")
    print(f"{'GPUs waiting for moves only':<30}{machine.stall_ns / max(1, machine.busy_ns):.2%} of busy time")
    print(f"{'turns ended before their end':<30}{machine.num_preemptions:,}")
    print(f"{'tokens recomputed':<30}{machine.recomputed_tokens:,}")
    print(f"{'pages moved':<30}{machine.moved_pages:,}")
    print(f"{'simulated':<30}{gpu_s:,.0f} GPU-seconds, {machine.num_steps:,} steps, in {took_s:.1f} s")


def _check_fit(sendings: list[Sending], cluster: Cluster) -> None:
    longest = max(each.row.input_tokens + each.row.output_tokens for each in sendings)
    room = cluster.pool_pages * cluster.layout.page_tokens
    if longest > room:
        raise SpecError(f"a context of {longest:,} tokens does not fit in a pool of {room:,}: --pool")


def _settings(options: argparse.Namespace) -> PlannerSettings:
    config = options.scheduler
    return PlannerSettings(
        target_ns=round(config.target_ms * 1e6),
        slice_ns=round(config.slice_ms * 1e6),
        request_ns=round(config.request_ms * 1e6),
        min_slice_ns=round(config.min_slice_ms * 1e6),
        gap_ns=round(config.gap_ms * 1e6),
        patience_ns=round(config.patience_ms * 1e6),
        floor_tokens_per_s=config.floor_tokens_per_s,
        first_slices=config.first_slices,
        max_model_len=options.max_model_len,
        reserve=MemoryConfig().reserve if options.reserve is None else options.reserve,
    )


def _describe(options: argparse.Namespace, sendings: list[Sending], measured: RunInfo | None) -> RunInfo:
    config = options.scheduler
    if measured is not None:
        name, model = f"simulated {measured.name}", f"Llama-3.1-8B on {options.gpus} x {options.gpu}"
        return msgspec.structs.replace(
            measured, name=name, model=model, url="simulator", num_planned=len(sendings), health=None
        )
    return RunInfo(
        name=f"simulated {config.policy}",
        started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        url="simulator",
        model=f"Llama-3.1-8B on {options.gpus} x {options.gpu}",
        trace=options.trace.text,
        arrivals=options.arrivals.describe(),
        tenants=options.tenants.describe(),
        seed=options.seed,
        num_planned=len(sendings),
        tenant_weights={name: options.tenant_weights.get(name, 1.0) for name in options.tenants.names},
        options={"policy": config.policy, "moves": options.moves},
    )


if __name__ == "__main__":
    sys.exit(main())
