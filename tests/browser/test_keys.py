"""The page of a server that asks for keys, and of one whose engine goes away; over a fake engine."""

import time
from pathlib import Path

import pytest

from api.keys import main
from engine.config import ServerConfig
from engine.messages import SliceFate, SliceRecord
from tests.api.harness import run_for, running_api
from tests.browser.chromium import open_page

pytestmark = pytest.mark.browser

QUEUE_IS_SEEN = "document.getElementById('queue').checkVisibility()"


def state_is(state: str) -> str:
    return f"document.getElementById('status').dataset.state === '{state}'"


def record(tenant: str, prompt: int) -> SliceRecord:
    now_ns = time.monotonic_ns()
    return SliceRecord(
        prompt=prompt,
        tenant=tenant,
        device="cpu",
        slot=prompt,
        arrival_ns=now_ns - 10**9,
        start_ns=now_ns - 10**8,
        first_token_ns=None,
        end_ns=now_ns,
        prefilled=0,
        sampled=9,
        fate=SliceFate.PREEMPTED,
    )


def test_a_key_is_asked_for_and_forgotten(
    chromium: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    assert main(["--file", str(file), "add", "alice"]) == 0
    key = capsys.readouterr().out.split()[0]

    async def test() -> None:
        async with (
            running_api(server=ServerConfig(port=0, keys=str(file))) as api,
            open_page(chromium) as page,
        ):
            api.engine.slices = [record("alice", 1), record("bob", 2)]
            await page.open(f"http://127.0.0.1:{api.port}/")
            await page.until(state_is("locked"))
            assert not await page.run("document.getElementById('key-panel').hidden")
            await page.run("document.getElementById('key').focus()")
            await page.type("fs-nonsense")
            await page.press("Enter")
            await page.until("document.getElementById('key-note').textContent.includes('not known')")
            await page.run("document.getElementById('key').focus()")
            await page.type(key)
            await page.press("Enter")
            await page.until(state_is("live"))
            assert await page.run("document.getElementById('key-panel').hidden")
            names = "[...document.querySelectorAll('#tenants th')].map((node) => node.textContent)"
            assert await page.run(names) == ["alice", "all others"]
            assert "bob" not in await page.run("document.documentElement.outerHTML")
            assert await page.run(QUEUE_IS_SEEN)
            await page.click("#forget")
            await page.until(state_is("locked"))
            assert not await page.run(QUEUE_IS_SEEN)
            assert all("401" in error for error in page.errors)

    run_for(test(), 120)


HOLD_ANSWERS = """(() => {
    const real = window.fetch;
    window.held = [];
    window.holds = true;
    window.fetch = async (...question) => {
        const answer = await real(...question);
        if (window.holds) await new Promise((go) => window.held.push(go));
        return answer;
    };
})()"""


def test_an_answer_to_a_forgotten_key_comes_too_late(
    chromium: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    assert main(["--file", str(file), "add", "alice"]) == 0
    key = capsys.readouterr().out.split()[0]

    async def test() -> None:
        async with (
            running_api(server=ServerConfig(port=0, keys=str(file))) as api,
            open_page(chromium) as page,
        ):
            await page.open(f"http://127.0.0.1:{api.port}/")
            await page.until(state_is("locked"))
            await page.run("document.getElementById('key').focus()")
            await page.type(key)
            await page.press("Enter")
            await page.until(state_is("live"))
            await page.run(HOLD_ANSWERS)
            await page.until("window.held.length === 1")
            await page.run("window.holds = false")
            await page.click("#forget")
            await page.until(state_is("locked"))
            await page.run("window.held.forEach((go) => go())")
            await page.run("new Promise((done) => setTimeout(done, 100))")
            assert await page.run(state_is("locked"))

    run_for(test(), 120)


def test_an_engine_that_goes_away_and_comes_back(chromium: str) -> None:
    async def test() -> None:
        async with running_api() as api, open_page(chromium) as page:
            await page.open(f"http://127.0.0.1:{api.port}/")
            await page.until(state_is("live"))
            await api.engine.stop()
            await page.until(state_is("lost"))
            assert "engine" in await page.run("document.getElementById('status').textContent")
            await api.engine.start()
            await page.until(state_is("live"))
            assert all("503" in error for error in page.errors)

    run_for(test(), 120)
