"""A browser, if there is one, and a server for it to look at."""

from collections.abc import Iterator

import pytest

from tests.browser.chromium import NAMES, find_chromium
from tests.browser.scene import Scene, serving


@pytest.fixture(scope="session")
def chromium() -> str:
    found = find_chromium()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH")
    return found


@pytest.fixture(scope="package")
def scene(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A real server without keys."""
    with serving(tmp_path_factory.mktemp("scene"), with_keys=False) as served:
        yield served
