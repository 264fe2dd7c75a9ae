"""Imports go one way, as the layout in docs/architecture.md says; and the engine starts without torch.

api       ->  engine: messages, config, wire, byte_tokenizer, socket_folder, restarts, descriptors
engine    ->  engine.fairness, engine.memory; never engine.model_runner (another process)
runner    ->  engine.model_runner, and of the rest: messages, wire, byte_tokenizer, prefill_parts, memory.page
              and what moves and maps pages
fairness, memory: no clock, no event loop, no torch, and nothing of the engine above them
engine.simulator  ->  the engine's core, and loadgen's pure modules (traces, statistics, the report);
              nothing of the engine imports it
loadgen   ->  neither api nor engine
fairslice ->  engine.config; what a command needs is imported when it runs
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNNER_MAY = (
    "engine.messages",
    "engine.wire",
    "engine.byte_tokenizer",
    "engine.prefill_parts",
    "engine.memory.machine",
    "engine.memory.page",
    "engine.memory.regions",
)
RUNNER_MEMORY = (  # they move pages, make pools on a device, hold tensors
    "engine.memory.transfer",
    "engine.memory.cuda_",
    "engine.memory.elastic",
)
API_MAY = tuple(
    f"engine.{name}"
    for name in ("messages", "config", "wire", "byte_tokenizer", "socket_folder", "restarts", "descriptors")
)
SIMULATOR_MAY = (  # of loadgen: nothing that sends
    *("loadgen.arrivals", "loadgen.plan", "loadgen.report", "loadgen.results", "loadgen.spec"),
    *("loadgen.stats", "loadgen.tables", "loadgen.tenants", "loadgen.traces"),
)
IMPURE = ("asyncio", "torch", "time", "uvloop")


def modules_of(package: str) -> list[str]:
    """Dotted names of all modules of a package."""
    files = sorted((ROOT / package.replace(".", "/")).rglob("*.py"))
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_in_runner(module: str) -> bool:
    """Modules of engine that run in the runner process only."""
    return is_within(module, "engine.model_runner") or module.startswith(RUNNER_MEMORY)


def imports_of(module: str) -> Iterator[str]:
    """Dotted names of what a module imports, wherever in it, `from x import y` as x and as x.y."""
    file = ROOT / module.replace(".", "/")
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            yield node.module
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if is_ours(f"{node.module}.{alias.name}")
            )


def is_ours(name: str) -> bool:
    """Whether a dotted name is a module of this repository."""
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def is_engine_core(module: str) -> bool:
    return is_within(module, "engine") and not is_in_runner(module) and not is_in_simulator(module)


def is_in_simulator(module: str) -> bool:
    return is_within(module, "engine.simulator")


def allowed_in_api(name: str) -> bool:
    return not is_within(name, "engine", "loadgen") or name == "engine" or is_within(name, *API_MAY)


def allowed_in_core(name: str) -> bool:
    return not is_within(name, "torch", "transformers", "api", "loadgen") and not (
        is_in_runner(name) or is_in_simulator(name)
    )


def allowed_in_simulator(name: str) -> bool:
    is_loadgen = name == "loadgen" or is_within(name, *SIMULATOR_MAY)
    return is_loadgen or is_in_simulator(name) or allowed_in_core(name)


def allowed_in_pure(name: str) -> bool:
    own = is_within(name, "engine.fairness", "engine.memory", "engine.messages") or name == "engine"
    return not is_within(name, *IMPURE, "api") and (own or not is_within(name, "engine"))


def allowed_in_runner(name: str) -> bool:
    if not is_within(name, "engine", "api", "loadgen") or name in ("engine", "engine.memory"):
        return True
    return is_within(name, "engine.model_runner", *RUNNER_MAY) or name.startswith(RUNNER_MEMORY)


def allowed_in_loadgen(name: str) -> bool:
    return not is_within(name, "engine", "api", "torch")


def allowed_in_command(name: str) -> bool:
    return not is_within(name, "api", "engine", "loadgen") or name in ("engine", "engine.config")


RULES: list[tuple[str, list[str], Callable[[str], bool]]] = [
    ("api", modules_of("api"), allowed_in_api),
    ("engine", [name for name in modules_of("engine") if is_engine_core(name)], allowed_in_core),
    ("simulator", modules_of("engine.simulator"), allowed_in_simulator),
    ("fairness", modules_of("engine.fairness"), allowed_in_pure),
    ("memory", [name for name in modules_of("engine.memory") if not is_in_runner(name)], allowed_in_pure),
    ("runner", modules_of("engine.model_runner"), allowed_in_runner),
    ("loadgen", modules_of("loadgen"), allowed_in_loadgen),
    ("fairslice", modules_of("fairslice"), allowed_in_command),
]


@pytest.mark.parametrize(
    ("modules", "allowed"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_imports_go_one_way(modules: list[str], allowed: Callable[[str], bool]) -> None:
    assert modules
    forbidden = [
        f"{module} imports {name}" for module in modules for name in imports_of(module) if not allowed(name)
    ]
    assert forbidden == []


@pytest.mark.parametrize("package", ["api", "engine"])
def test_processes_without_a_gpu_start_without_torch(package: str) -> None:
    names = modules_of("api") if package == "api" else [m for m in modules_of("engine") if is_engine_core(m)]
    names = [name for name in names if not name.endswith("__main__")]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
