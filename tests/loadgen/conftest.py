import importlib

import pytest


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plots extra were not installed."""
    find = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return find(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
