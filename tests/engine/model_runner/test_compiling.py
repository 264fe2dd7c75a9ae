import pytest

pytest.importorskip("triton")

from types import SimpleNamespace

import sympy
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.sizevars import SizeVarAllocator
from torch._inductor.virtualized import V

from engine.model_runner.compiling import OnePassRows, PassesInOrder
from engine.model_runner.kept_rows import KeepRowsEarly
from engine.model_runner.residuals import AddInProducts
from engine.model_runner.shared_linear import MergeProducts


@pytest.mark.parametrize(
    ("width", "hint", "in_one_pass"),
    [
        (4096, ReductionHint.INNER, True),
        (8192, ReductionHint.INNER, True),
        (8193, ReductionHint.INNER, False),
        (4096, ReductionHint.OUTER, False),
        (32, ReductionHint.OUTER, True),
    ],
)
def test_rows_are_reduced_in_one_pass(width: int, hint: ReductionHint, in_one_pass: bool) -> None:
    features = SimpleNamespace(get_reduction_hint=lambda: hint, reduction_numel=sympy.Integer(width), numel=8)
    with V.set_graph_handler(SimpleNamespace(sizevars=SizeVarAllocator())):  # type: ignore[arg-type]
        assert OnePassRows(8192).should_use_persistent_reduction(features, False) == in_one_pass


class Named(CustomGraphPass):
    def __init__(self, name: str, called: list[str]) -> None:
        self.name, self.called = name, called

    def __call__(self, graph: fx.Graph) -> None:
        self.called.append(self.name)

    def uuid(self) -> str:
        return self.name


def test_passes_go_in_order_and_all_of_them_name_the_cached_graph() -> None:
    called: list[str] = []
    both = PassesInOrder([Named("a", called), Named("b", called)], "rows")
    both(fx.Graph())
    assert called == ["a", "b"]
    assert both.uuid() == "a; b; rows"


def test_what_could_change_the_compiled_code_has_a_name_of_its_own() -> None:
    """A name that two shared would have one's cached graph run for the other."""
    passes = [MergeProducts(), KeepRowsEarly(), AddInProducts(), OnePassRows(4096), OnePassRows(8192)]
    assert len({each.uuid() for each in passes}) == len(passes)
