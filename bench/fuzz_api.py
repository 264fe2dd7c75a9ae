"""Schemathesis over the api's own OpenAPI document: at least 10,000 cases against a fake engine.

    python -m bench.fuzz_api [--cases 1500] [--seed 1]

No answer may be a 5xx, none may take longer than a bound, every answer must be one that the document has, and
afterwards nothing of any request may be left. Exit status 1 if any of that fails.
"""

import argparse
import sys

from tests.api.fuzzing import fuzz
from tests.api.harness import run_for

LIMIT_CASES = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1500, help="for each operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    report = run_for(fuzz(options.cases, options.seed, workers=options.workers), limit_s=7200)
    print(report.output)
    print(f"cases                         {report.num_cases:,}   (limit: at least {LIMIT_CASES:,})")
    print(f"requests that reached the engine {report.num_submitted:,}; nothing is left of any")
    return 0 if report.status == 0 and report.num_cases >= LIMIT_CASES else 1


if __name__ == "__main__":
    sys.exit(main())
