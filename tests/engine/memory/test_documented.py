"""The example in docs/memory.md runs."""

import re
from pathlib import Path


def test_the_example_of_elastic_tensors_runs():
    text = (Path(__file__).parents[3] / "docs" / "memory.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["weights"].shape == (64, 64)
    assert names["lent"].num_used == 0
    names["transfers"].close()
