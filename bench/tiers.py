"""Tiers over time: a picture of where contexts live while a device lends, reclaims and lends again.

    python -m bench.tiers [--out docs/images/tiers.png] [--seconds 40]

Runs the real engine on two cpu devices, each with a tiny model of its own. More prompts come to the first
than fit its pool, so contexts live with the second, which has nothing to do and lends; then it has, twice,
and wants its memory back. Pages are sampled from the engine's status. Needs the `plots` extra.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from engine.messages import Admitted, GetStats, PromptSpec, Rejected, Sampling, Stats, Submit
from engine.questions import NoAnswer, Questions

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "borrower"
devices = ["cpu:0"]
max_model_len = 256
[[models]]
path = "dummy:tiny"
name = "lender"
devices = ["cpu:1"]
max_model_len = 256
[[devices]]
name = "cpu:0"
memory = "640KiB"
lend = 0
threads = 1
[[devices]]
name = "cpu:1"
memory = "2MiB"
threads = 1
[scheduler]
slice_ms = 60
min_slice_ms = 10
max_batch = 8
[memory]
host = "16MiB"
[engine]
socket = "{socket}"
"""
OPEN_BORROWERS = 30  # prompts of the first model at any time
BURST = 40  # prompts of the second, at each of the bursts
BURSTS = (0.3, 0.65)  # of the run
PERIOD_S = 0.05
LOCAL, LENT, HOST = "#4269d0", "#3ca951", "#b8bcc6"
OWN, BURST_COLOUR = "#efb118", "#ff725c"


@dataclass(frozen=True, slots=True)
class Sample:
    """Pages at a moment: of the borrower's contexts by place, and of the lender's own; its lent ones too."""

    seconds: float
    local: int
    lent: int
    host: int
    own: int
    leased: int
    waiting: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/tiers.png"))
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    samples, bursts, capacity = run(options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(samples, bursts, capacity, options.out)
    print(f"{options.out}: {len(samples)} samples, {max(s.lent for s in samples)} pages lent at most")


@contextmanager
def engine() -> Iterator[Questions]:
    """An engine, and a connection with it once both models are ready."""
    with tempfile.TemporaryDirectory() as folder:
        config, path = Path(folder) / "fairslice.toml", str(Path(folder) / "engine.sock")
        config.write_text(CONFIG.format(socket=path))
        process = subprocess.Popen([sys.executable, "-m", "engine", "--config", str(config)])
        try:
            yield connect(path)
        finally:
            process.terminate()
            process.wait()


def connect(path: str) -> Questions:
    while True:
        with suppress(NoAnswer):
            questions = Questions(path, "tiers")
            while not all(model["ready"] for model in status_of(questions)["models"].values()):
                time.sleep(0.1)
            return questions
        time.sleep(0.1)


def status_of(questions: Questions) -> dict[str, Any]:
    return questions.ask(GetStats(serial=1), Stats).status


def run(seconds: float) -> tuple[list[Sample], list[float], int]:
    """Samples, when the lender's bursts began, and the pages of its pool."""
    source = random.Random(1)
    samples: list[Sample] = []
    bursts: list[float] = []
    with engine() as questions:
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            status = status_of(questions)
            borrower, lender = status["models"]["borrower"], status["models"]["lender"]
            samples.append(sample(now, status))
            for _ in range(OPEN_BORROWERS - borrower["running"] - borrower["waiting"]):
                submit(questions, "borrower", source)
            if len(bursts) < len(BURSTS) and now > BURSTS[len(bursts)] * seconds:
                bursts.append(now)
                for _ in range(BURST):
                    submit(questions, "lender", source)
            time.sleep(PERIOD_S)
        return samples, bursts, capacity_of(status, lender)


def sample(now: float, status: dict[str, Any]) -> Sample:
    borrower, lender = status["models"]["borrower"], status["models"]["lender"]
    leases = status["lenders"]["lender@cpu:1"]
    pages_per_segment = leases["segment_bytes"] // borrower["page_bytes"]
    return Sample(
        seconds=now,
        local=borrower["devices"]["cpu:0"]["pages_used"],
        lent=borrower["tiers"]["cpu:1"]["pages_used"],
        host=borrower["tiers"]["host"]["pages_used"],
        own=lender["devices"]["cpu:1"]["pages_used"],
        leased=sum(leases["leased"].values()) * pages_per_segment,
        waiting=lender["waiting"],
    )


def capacity_of(status: dict[str, Any], lender: dict[str, Any]) -> int:
    leases = status["lenders"]["lender@cpu:1"]
    return int(leases["segments"] * leases["segment_bytes"] // lender["page_bytes"])


def submit(questions: Questions, model: str, source: random.Random) -> None:
    prompt_id = f"{model}-{source.getrandbits(64):x}"
    spec = PromptSpec(
        prompt_id=prompt_id,
        input_ids=[source.randrange(256) for _ in range(source.randint(20, 120))],
        sampling=Sampling(max_tokens=source.randint(40, 120), temperature=0.0),
    )
    submitted = Submit(request_id=prompt_id, model=model, prompts=[spec])
    answer = questions.ask(submitted, Admitted, Rejected)
    assert isinstance(answer, Admitted), answer


def draw(samples: list[Sample], bursts: list[float], capacity: int, out: Path) -> None:
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False})
    pyplot.rcParams.update({"axes.spines.right": False, "axes.edgecolor": "#8a8f99"})
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(10, 6.4), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    times = [s.seconds for s in samples]
    above.stackplot(
        times,
        [s.local for s in samples],
        [s.lent for s in samples],
        [s.host for s in samples],
        labels=("local: cpu:0", "lent by cpu:1", "host"),
        colors=(LOCAL, LENT, HOST),
        linewidth=0,
    )
    above.set_title("Pages of a model on cpu:0 with too many prompts, by place", loc="left", fontsize=11)
    below.stackplot(
        times,
        [s.own for s in samples],
        [min(s.leased, capacity - s.own) for s in samples],  # of a recalled segment, pages come one by one
        labels=("its own contexts", "leased to the borrower"),
        colors=(OWN, LENT),
        linewidth=0,
    )
    below.axhline(capacity, color="#8a8f99", linewidth=1, linestyle=":")
    below.annotate("its pool", (times[-1], capacity), ha="right", va="bottom", color="#5f6570", fontsize=9)
    below.set_title("What cpu:1, which lends, does with its pool", loc="left", fontsize=11)
    below.set_xlabel("seconds")
    below.set_ylim(0, capacity * 1.15)
    for axes in (above, below):
        finish(axes, bursts, times[-1])
    for burst in bursts:
        text = f"{BURST} prompts come to\nthe lender: it reclaims"
        top = above.get_ylim()[1]
        above.annotate(text, (burst, top), xytext=(5, -4), textcoords="offset points", va="top", fontsize=9)
    figure.savefig(out, dpi=150, facecolor="white")


def finish(axes: Axes, bursts: list[float], end: float) -> None:
    """Marks, grid and legend."""
    for burst in bursts:
        axes.axvline(burst, color=BURST_COLOUR, linewidth=1.4)
    axes.set_xlim(0, end)
    axes.set_ylabel("pages")
    axes.set_ylim(0, axes.get_ylim()[1] * (1.12 if axes.get_xlabel() == "" else 1.0))
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9, borderpad=0)


if __name__ == "__main__":
    main()
