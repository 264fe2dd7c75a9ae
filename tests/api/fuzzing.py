"""Schemathesis over the api's own OpenAPI document, with a fake engine behind the api."""

import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.api.harness import running_api, until

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


async def fuzz(cases: int, seed: int, *, phases: str = "coverage,fuzzing", workers: int = 1) -> FuzzReport:
    """Up to `cases` per operation and phase. Fails if anything is left of any request."""
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
                f"--workers={workers}",
                "--continue-on-failure",
                "--suppress-health-check=all",
                "--no-shrink",
                "--warnings=off",
                cwd=folder,
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
