"""Takes the pictures of docs/live.md: python -m tests.browser.screenshots [FOLDER]

A real overload: four tenants with more prompts than fit, on two devices that serve and one that lends.
"""

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

from tests.browser.chromium import Page, find_chromium, open_page
from tests.browser.scene import OPERATOR, Scene, crowd, serving

HISTORY_S = 62.0  # until the small lines have their minute
WIDE, PHONE = 1440, 360
PHONE_HEIGHT = 1180


async def take_all(scene: Scene, chromium: str, folder: Path) -> None:
    """Raises RuntimeError if the page has errors."""
    people = asyncio.create_task(crowd(scene))
    try:
        async with open_page(chromium) as page:
            await page.resize(WIDE, 1000)
            await page.prefer(prefers_color_scheme="light")
            key = f"sessionStorage.setItem('fairslice-key', '{scene.keys[OPERATOR]}')"
            await page.send("Page.addScriptToEvaluateOnNewDocument", source=key)
            await page.open(scene.url)
            await asyncio.sleep(HISTORY_S)
            await take_whole(page, folder / "live-light.png")
            await page.prefer(prefers_color_scheme="dark")
            await show_rows(page, "prompts")
            await take_whole(page, folder / "live-dark.png")
            await page.prefer(prefers_color_scheme="light")
            await show_rows(page, "slots")
            await page.resize(PHONE, PHONE_HEIGHT, scale=2.0)
            await asyncio.sleep(1)
            await page.screenshot(folder / "live-phone.png")
            if page.errors:
                raise RuntimeError(f"the page has errors: {page.errors}")
    finally:
        people.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await people


async def show_rows(page: Page, kind: str) -> None:
    """Of the timeline: "slots" or "prompts"."""
    await page.run(f"document.getElementById('rows').value = '{kind}'")
    await page.run("document.getElementById('rows').dispatchEvent(new Event('change'))")


async def take_whole(page: Page, file: Path) -> None:
    """The page from top to bottom."""
    await page.resize(WIDE, 600)
    await asyncio.sleep(1)
    height = await page.run("document.documentElement.scrollHeight")
    await page.resize(WIDE, height)
    await asyncio.sleep(1)
    await page.screenshot(file)


def main() -> int:
    """Returns the exit status: 2 without a browser."""
    chromium = find_chromium()
    if chromium is None:
        print("no Chromium is on PATH", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, serving(Path(work), with_keys=True) as scene:
        asyncio.run(take_all(scene, chromium, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
