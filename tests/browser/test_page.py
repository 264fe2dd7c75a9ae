"""The page in a real browser, over a real engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.harness import run_for, until
from tests.browser.chromium import Page, open_page
from tests.browser.scene import Scene

pytestmark = pytest.mark.browser

NAMED_ROLES = {"application", "button", "textbox", "combobox", "spinbutton", "image", "region", "log", "link"}
LIVE = "document.getElementById('status').dataset.state === 'live'"
COLOURED = """(() => {
    const canvas = document.getElementById('timeline');
    const options = {willReadFrequently: true};
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', options);
    copy.drawImage(canvas, 0, 0);
    const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
        const parts = data.slice(i, i + 3);
        if (data[i + 3] > 200 && Math.max(...parts) - Math.min(...parts) > 60) count += 1;
    }
    return count;
})()"""


def look(chromium: str, scene: Scene, test: Callable[[Page], Awaitable[None]], **media: str) -> None:
    """Open the page, wait until it shows something, and run the test on it."""

    async def opened() -> None:
        async with open_page(chromium) as page:
            await page.resize(1280, 900)
            await page.prefer(**media)
            await page.open(scene.url)
            await page.until(LIVE)
            await test(page)
            assert page.errors == []

    run_for(opened(), 120)


async def send(page: Page, prompt: str, num_tokens: int) -> None:
    await page.run(f"document.getElementById('prompt').value = {json.dumps(prompt)}")
    await page.run(f"document.getElementById('max-tokens').value = {num_tokens}")
    await page.click("#send")


@asynccontextmanager
async def busy(scene: Scene) -> AsyncIterator[None]:
    """Somebody's prompts run all the while, each to its full length."""
    body = {"model": "tiny", "prompt": "c" * 100, "max_tokens": 600, "ignore_eos": True}

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.post(f"{scene.url}/v1/completions", json=body) as answer:
                    await answer.read()

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


def text_of(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def test_it_loads_without_errors_and_asks_no_other_host(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await page.until("document.querySelectorAll('.place').length === 4")
        names = await page.run("[...document.querySelectorAll('.place h3')].map((node) => node.textContent)")
        assert names == ["cpu:0", "cpu:1", "cpu:2", "host"]
        assert len(page.requests) > 10
        assert [url for url in page.requests if not url.startswith(scene.url)] == []

    look(chromium, scene, test)


def test_the_timeline_draws_slices_while_a_prompt_streams(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await send(page, "a" * 300, 700)
        await page.until(f"{text_of('answer')}.length > 0")
        async with busy(scene):  # the prompt itself may end at any token
            await page.until(f"{COLOURED} > 200")
            await page.until("document.getElementById('timeline').ariaLabel.includes('in force')")
            await page.run("document.getElementById('rows').value = 'prompts'")
            await page.run("document.getElementById('rows').dispatchEvent(new Event('change'))")
            await page.until(f"{COLOURED} > 20")
        await page.run("document.getElementById('slices-table').open = true")
        await page.until("document.querySelectorAll('#slices-table tbody tr').length > 0")

    look(chromium, scene, test)


def test_a_prompt_is_answered_to_its_end(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await send(page, "once", 12)
        await page.until("!document.getElementById('send').disabled")
        note = await page.run(text_of("try-note"))
        assert note.startswith(("reached its limit: first token after", "ended: first token after"))
        assert await page.run("document.getElementById('answer').ariaBusy") == "false"
        assert await page.run("document.getElementById('stop').disabled")

    look(chromium, scene, test)


def test_a_prompt_is_stopped_and_its_place_freed(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await send(page, "b" * 100, 900)
        await page.until(f"{text_of('answer')}.length > 0")
        await page.click("#stop")
        await page.until(f"{text_of('try-note')}.startsWith('stopped')")
        state = "fetch('/live/state').then((answer) => answer.json())"
        await page.until(f"{state}.then((s) => s.models[0].devices.every((d) => d.num_running === 0))")

    look(chromium, scene, test)


def test_what_the_server_refuses_is_said(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await send(page, "c" * 2000, 5)
        await page.until(f"{text_of('try-note')}.includes('context holds')")
        assert len(page.errors) == 1  # the browser's own note of the 400
        page.errors.clear()

    look(chromium, scene, test)


def test_light_and_dark(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        assert await page.run("document.documentElement.dataset.theme") == "dark"
        await page.click("#theme")
        assert await page.run("document.documentElement.dataset.theme") == "light"
        paper = "getComputedStyle(document.documentElement).backgroundColor"
        assert await page.run(paper) == "rgb(251, 251, 249)"
        await page.open(scene.url)  # the choice is kept, against the system's
        await page.until(LIVE)
        assert await page.run(paper) == "rgb(251, 251, 249)"

    look(chromium, scene, test, prefers_color_scheme="dark")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(chromium: str, scene: Scene, theme: str) -> None:
    async def test(page: Page) -> None:
        script = (
            "(() => { const style = getComputedStyle(document.documentElement);"
            "return [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])"
            ".filter((rule) => rule.selectorText === ':root').flatMap((rule) => [...rule.style])"
            ".filter((name) => name.startsWith('--') && style.getPropertyValue(name).startsWith('#'))"
            ".map((name) => [name, style.getPropertyValue(name)]); })()"
        )
        colours = dict(await page.run(script))
        for name in ("--ink", "--soft", "--bad", "--accent"):
            assert contrast(colours[name], colours["--paper"]) >= 4.5, name
        assert contrast(colours["--soft"], colours["--faint"]) >= 4.5
        for name in [name for name in colours if name[2] in "td" and name[3:].isdigit()]:
            assert contrast(colours[name], colours["--paper"]) >= 3, name
        assert contrast(colours["--others"], colours["--paper"]) >= 3

    look(chromium, scene, test, prefers_color_scheme=theme)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_everything_is_reached_and_used_by_keys(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        focused = "document.activeElement.id || document.activeElement.tagName"
        await page.press("Tab")
        assert await page.run("document.activeElement.className") == "skip"
        await page.press("Enter")
        reached = []
        while "SUMMARY" not in reached:
            await page.press("Tab")
            reached.append(await page.run(focused))
        assert reached == ["rows", "window", "pause", "save", "timeline", "SUMMARY"]
        while reached[-1] not in ("BODY", "HTML"):
            await page.press("Tab")
            reached.append(await page.run(focused))
        assert [name for name in reached if name in ("prompt", "max-tokens", "send", "answer")]
        await page.run("document.getElementById('prompt').focus()")
        await page.type("keys alone")
        await page.run("document.getElementById('send').focus()")
        await page.press("Enter")
        await page.until(
            f"!document.getElementById('send').disabled && {text_of('try-note')}.includes('first token')"
        )
        await page.until(f"{COLOURED} > 0")
        await page.run("document.getElementById('timeline').focus()")
        await page.press(" ")
        assert await page.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
        await page.press("ArrowRight")
        assert (await page.run(text_of("detail"))).startswith("Prompt ")
        await page.run(
            "document.getElementById('slices-table').open = true"
        )  # filled though time stands still
        await page.until("document.querySelectorAll('#slices-table tbody tr').length > 0")
        await page.press("Escape")
        assert await page.run(text_of("detail")) == ""
        await page.press(" ")
        assert await page.run("document.getElementById('pause').getAttribute('aria-pressed')") == "false"

    look(chromium, scene, test)


def test_everything_has_a_name_for_a_screen_reader(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await page.until("document.querySelectorAll('.place').length === 4")
        tree = (await page.send("Accessibility.getFullAXTree"))["nodes"]
        shown = [node for node in tree if not node.get("ignored")]
        names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]
        assert [role for role, name in names if role in NAMED_ROLES and not name] == []
        landmarks = {"banner", "main", "contentinfo", "heading"}
        assert landmarks | NAMED_ROLES - {"image"} <= {role for role, _ in names}

    look(chromium, scene, test)


def test_no_motion_for_those_who_want_none(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        await send(page, "d" * 200, 300)
        await page.until(f"{text_of('answer')}.length > 0")
        assert await page.run("document.getAnimations().length") == 0
        await page.until(f"{COLOURED} > 0")  # drawn with the data, not with the clock
        await page.click("#stop")

    look(chromium, scene, test, prefers_reduced_motion="reduce")


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_the_screen(chromium: str, scene: Scene, width: int) -> None:
    async def test(page: Page) -> None:
        await page.resize(width, 740)
        await page.until("document.querySelectorAll('.place').length === 4")
        await send(page, "e" * 200, 100)
        await page.until(f"{text_of('answer')}.length > 0")
        assert await page.run("document.documentElement.scrollWidth") <= width
        outside = (
            "[...document.querySelectorAll('main *')].filter((node) => !node.closest('.scroll, svg') && "
            f"node.getBoundingClientRect().right > {width} + 0.5).map((node) => node.outerHTML.slice(0, 80))"
        )
        assert await page.run(outside) == []

    look(chromium, scene, test)


def test_the_trace_is_one_that_viewers_read(chromium: str, scene: Scene, tmp_path: Path) -> None:
    async def test(page: Page) -> None:
        await send(page, "f" * 100, 40)
        await page.until("!document.getElementById('send').disabled")
        await asyncio.sleep(1)  # for the slices to come with the next answer
        await page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        await page.click("#save")
        await until(lambda: list(tmp_path.glob("fairslice-*.json")))

    look(chromium, scene, test)
    (file,) = tmp_path.glob("fairslice-*.json")
    check_trace(json.loads(file.read_text()))


def check_trace(trace: dict[str, Any]) -> None:
    events = trace["traceEvents"]
    names = {(event["pid"], event.get("tid"), event["name"]) for event in events if event["ph"] == "M"}
    slices = [event for event in events if event["ph"] == "X"]
    assert any(event["name"].startswith("prompt ") for event in slices)
    assert any(event["name"] == "prefill" for event in slices)
    for event in slices:
        assert type(event["ts"]) is int
        assert event["ts"] >= 0
        assert type(event["dur"]) is int
        assert event["dur"] >= 0
        assert (event["pid"], None, "process_name") in names
        assert (event["pid"], event["tid"], "thread_name") in names
    by_place: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in slices:
        if event["name"] != "prefill":
            by_place.setdefault((event["pid"], event["tid"]), []).append(event)
    for place in by_place.values():
        place.sort(key=lambda event: event["ts"])
        ends = [event["ts"] + event["dur"] for event in place]
        assert all(end <= later["ts"] + 1 for end, later in zip(ends, place[1:], strict=False))


def test_percentiles_out_of_histograms(chromium: str, scene: Scene) -> None:
    async def test(page: Page) -> None:
        async def percentile(buckets: list[list[float | None]], part: float) -> float | None:
            call = f"m.percentile({json.dumps(buckets)}, {part})"
            value: float | None = await page.run(f"import('/static/percentiles.js').then((m) => {call})")
            return value

        buckets: list[list[float | None]] = [[0.1, 0], [0.2, 10], [0.4, 30], [None, 40]]
        assert await percentile(buckets, 0.25) == pytest.approx(0.2)
        assert await percentile(buckets, 0.5) == pytest.approx(0.3)
        assert await percentile(buckets, 0.99) == pytest.approx(0.4)
        assert await percentile([], 0.5) is None
        assert await percentile([[0.1, 0], [None, 0]], 0.5) is None

    look(chromium, scene, test)
