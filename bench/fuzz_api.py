"""Schemathesis over the api's own OpenAPI document: at least 10,000 cases against a fake engine.

    python -m bench.fuzz_api [--cases 1500] [--seed 1] [--jobs 2] [--out FILE]

No answer may be a 5xx, none may take longer than a bound, every answer must be one that the document has, and
afterwards nothing of any request may be left. Each operation is a run of its own. `--out` names a file with a
line of JSON for each that is done; given again, the run goes on from there. Exit status 1 if a check failed
or there were too few cases.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import msgspec

from bench.report import print_rows
from tests.api.fuzzing import Operation, fuzz, operations
from tests.api.harness import run_for

LIMIT_CASES = 10_000
KINDS = ("any", "valid")  # of cases; most valid ones are served
LIMIT_S = 4 * 3600.0


class Outcome(msgspec.Struct, frozen=True):
    """What came of one operation. `status` is schemathesis's: 0 if no check failed."""

    operation: str
    kind: str  # of KINDS
    seed: int
    status: int
    num_cases: int
    num_submitted: int  # requests that reached the engine
    took_s: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, default=1500, help="at most, for each operation and phase (1500)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the cases (1)")
    parser.add_argument("--jobs", type=int, default=2, help="operations that are tried at once (2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep what is done there, and go on from it")
    options = parser.parse_args()
    outcomes = run_for(fuzz_all(options), LIMIT_S)
    rows = [
        (
            each.operation,
            each.kind,
            f"{each.num_cases:,}",
            f"{each.num_submitted:,}",
            "no" if each.status == 0 else "YES",
        )
        for each in outcomes
    ]
    print_rows(("operation", "kind", "cases", "reached the engine", "failed"), rows)
    num_cases = sum(each.num_cases for each in outcomes)
    print(f"\ncases: {num_cases:,} (limit: at least {LIMIT_CASES:,}); nothing is left of any request")
    return 0 if num_cases >= LIMIT_CASES and all(each.status == 0 for each in outcomes) else 1


async def fuzz_all(options: argparse.Namespace) -> list[Outcome]:
    """One outcome for each operation and kind, in the document's order."""
    done = read_outcomes(options.out, options.seed) if options.out is not None else {}
    places = asyncio.Semaphore(options.jobs)

    async def fuzz_one(operation: Operation, kind: str) -> Outcome:
        if (outcome := done.get((str(operation), kind))) is not None:
            return outcome
        async with places:
            outcome = await fuzz_operation(operation, kind, options)
        if options.out is not None:
            with options.out.open("ab") as file:
                file.write(msgspec.json.encode(outcome) + b"\n")
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(fuzz_one(operation, kind))
            for operation in await operations()
            for kind in KINDS
            if kind == "any" or operation.method == "POST"
        ]
    return [task.result() for task in tasks]


async def fuzz_operation(operation: Operation, kind: str, options: argparse.Namespace) -> Outcome:
    """Try one operation; print what failed at once."""
    begin_s = time.monotonic()
    valid = kind == "valid"
    phases = "fuzzing" if valid else "coverage,fuzzing"
    report = await fuzz(options.cases, options.seed, phases=phases, operation=operation, valid_only=valid)
    took_s = round(time.monotonic() - begin_s, 1)
    print(f"{operation}, {kind}: {report.num_cases:,} cases in {took_s:.0f} s", file=sys.stderr, flush=True)
    if report.status != 0:
        print(report.output, flush=True)
    counts = report.status, report.num_cases, report.num_submitted
    return Outcome(str(operation), kind, options.seed, *counts, took_s)


def read_outcomes(path: Path, seed: int) -> dict[tuple[str, str], Outcome]:
    """What an earlier run with this seed found, by operation and kind."""
    if not path.exists():
        return {}
    outcomes = [msgspec.json.decode(line, type=Outcome) for line in path.read_bytes().splitlines()]
    return {(each.operation, each.kind): each for each in outcomes if each.seed == seed}


if __name__ == "__main__":
    sys.exit(main())
