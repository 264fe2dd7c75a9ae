# mypy: allow-untyped-calls
"""How a model's forward pass is compiled: graph passes, and what is asked of the compiler beyond them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import fx
from torch._inductor.choices import InductorChoices
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

from engine.model_runner.kept_rows import KeepRowsEarly
from engine.model_runner.kernels.chain import can_chain
from engine.model_runner.residuals import AddInProducts
from engine.model_runner.shared_linear import MergeProducts

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""ids [1, n], positions [1, n], keep [k] (indices of tokens) -> logits [k, vocab]."""


class OnePassRows(InductorChoices):
    """Reductions of rows of up to `width` elements read the row once, and norm it out of registers.

    Inductor itself does so up to 1,024 elements; wider rows it reads in one loop for the statistics, and in a
    second one for the result.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def should_use_persistent_reduction(self, features: Any, cooperative_reduction: bool) -> bool:  # type: ignore[override]
        is_row = features.get_reduction_hint() == ReductionHint.INNER
        if is_row and V.graph.sizevars.statically_known_leq(features.reduction_numel, self._width):
            return True
        return bool(InductorChoices.should_use_persistent_reduction(features, cooperative_reduction))

    def uuid(self) -> str:
        return f"rows of {self._width}, {get_hash_for_files((__file__,)).hex()}"


class PassesInOrder(CustomGraphPass):
    """Inductor pass: several, one after another. `note` is what else the compiled code depends on: compiled
    graphs are cached by it."""

    def __init__(self, passes: Sequence[CustomGraphPass], note: str) -> None:
        self._passes = passes
        self._note = note

    def __call__(self, graph: fx.Graph) -> None:
        for graph_pass in self._passes:
            graph_pass(graph)

    def uuid(self) -> str:
        return "; ".join([*(str(graph_pass.uuid()) for graph_pass in self._passes), self._note])


@dataclass(frozen=True, slots=True)
class CompileChoices:
    """`keep_rows_early`: the last layer computes only tokens whose logits are wanted. `add_in_products`:
    products add to the residual themselves. `one_pass_width`: rows of up to so many elements are reduced in
    one pass; 0: as inductor would. What each is worth: docs/benchmarks.md. Deterministic code takes none."""

    keep_rows_early: bool = True
    add_in_products: bool = True
    one_pass_width: int = 8192  # what a program holds in its registers


def compiled(
    forward: Forward, device: torch.device, *, deterministic: bool, choices: CompileChoices | None = None
) -> Forward:
    """`forward`, compiled in its first call for any number of tokens and logits from two on."""
    choices = choices or CompileChoices()
    passes: list[CustomGraphPass] = [MergeProducts()]
    note = ""
    rows: Callable[[], AbstractContextManager[object]] = nullcontext
    options: dict[str, Any] = {
        # The residual stream is written once, rather than added up again wherever it is read.
        "realize_reads_threshold": 2,
    }
    if can_chain(device) and hasattr(torch._inductor.config.triton, "enable_pdl"):
        options["triton.enable_pdl"] = True  # as our own kernels do, see `kernels.chain`
    if deterministic:
        # How reductions are tiled decides their order: no choice by timing, nor by the size of a batch.
        options["deterministic"] = True
        if hasattr(torch._inductor.config, "batch_invariant"):
            options["batch_invariant"] = True
    else:
        if choices.keep_rows_early:
            passes.append(KeepRowsEarly())
        if choices.add_in_products:
            passes.append(AddInProducts())
        if choices.one_pass_width:
            one_pass = OnePassRows(choices.one_pass_width)
            note, rows = one_pass.uuid(), partial(V.set_choices_handler, one_pass)
    options["post_grad_custom_pre_pass"] = PassesInOrder(passes, note)
    run: Forward = torch.compile(forward, options=options)

    def with_marks(ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        for tensor, dim in ((ids, 1), (positions, 1), (keep, 0)):
            torch._dynamo.mark_dynamic(tensor, dim)
        with rows():
            return run(ids, positions, keep)

    return with_marks
