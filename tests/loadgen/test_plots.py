import re

import pytest

from loadgen.plots import Line, Plot, draw

pytest.importorskip("matplotlib")


def a_plot(num_lines: int) -> Plot:
    lines = [
        Line(label=f"line {number}", curve=([0.0, 1.0], [0.0, float(number)]), colour=number)
        for number in range(num_lines)
    ]
    return Plot(name="p", title="", note="", x_label="x", y_label="y", lines=lines)


def height(svg: str) -> float:
    found = re.search(r'viewBox="0 0 \S+ (\S+)"', svg)
    assert found is not None
    return float(found[1])


def test_a_legend_of_many_lines_stands_below_them() -> None:
    few, many = draw(a_plot(4)), draw(a_plot(8))
    assert height(many) > height(few)
    assert all(f"line {number}<" in many for number in range(8))
    assert all(f"line {number}<" in few for number in range(4))
