"""These tests run the kernels in Triton's interpreter; tests/gpu runs them on a GPU."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if os.environ.get("TRITON_INTERPRET") != "1":
            item.add_marker(pytest.mark.skip(reason="runs in Triton's interpreter only"))
        # the interpreter takes scalars from arrays of one element
        item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
