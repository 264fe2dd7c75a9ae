"""Schemathesis over the api's own OpenAPI document, with a fake engine behind the api."""

import asyncio
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.api.harness import running_api, until

ROOT = Path(__file__).parents[2]
MAX_RESPONSE_S = 10.0
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,allow_header_conformance"
)


@dataclass(frozen=True)
class FuzzReport:
    """`status` is schemathesis's: 0 if no check failed."""

    status: int
    num_cases: int
    num_submitted: int  # requests that reached the engine
    output: str


@dataclass(frozen=True)
class Operation:
    """One method of one path of the OpenAPI document."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def operations() -> list[Operation]:
    """All that the document has, in its order."""
    async with running_api() as api:
        paths = (await api.get("/openapi.json")).json["paths"]
    return [Operation(method.upper(), path) for path, methods in paths.items() for method in methods]


async def fuzz(
    cases: int,
    seed: int,
    *,
    phases: str = "coverage,fuzzing",
    operation: Operation | None = None,
    valid_only: bool = False,
) -> FuzzReport:
    """Up to `cases` per operation and phase, of all operations or one. `valid_only`: no cases that break the
    document's rules, and few fields in each, so that most are served. Fails if anything is left of a request.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if valid_only:
        environment["SCHEMATHESIS_HOOKS"] = "tests.api.fuzz_hooks"
    chosen = [] if operation is None else [f"--include-name={operation}"]
    async with running_api() as api:
        with tempfile.TemporaryDirectory() as folder:
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"http://127.0.0.1:{api.port}/openapi.json",
                f"--checks={CHECKS}",
                f"--phases={phases}",
                f"--max-examples={cases}",
                f"--max-response-time={MAX_RESPONSE_S}",
                f"--seed={seed}",
                f"--mode={'positive' if valid_only else 'all'}",
                *chosen,
                "--continue-on-failure",
                "--suppress-health-check=all",
                "--no-shrink",
                "--warnings=off",
                cwd=folder,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            printed, _ = await process.communicate()
        await until(lambda: not api.services.client.open_requests)
        api.check_clean()
        assert not api.engine.running
        output = printed.decode(errors="replace")
        counted = re.search(r"([\d,]+) generated", output)
        num_cases = int(counted[1].replace(",", "")) if counted else 0
        assert process.returncode is not None
        return FuzzReport(process.returncode, num_cases, len(api.engine.submits), output)
