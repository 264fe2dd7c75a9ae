"""A headless Chromium, driven over the DevTools protocol: enough of it to test a page as a person uses it."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_S = 60.0
ANSWER_S = 30.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--force-device-scale-factor=1",
)
KEYS = {  # name -> (code, Windows key code, text)
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    " ": ("Space", 32, " "),
    "Escape": ("Escape", 27, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
}


def find_chromium() -> str | None:
    """Its path, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `errors` are what its console shows as errors or warnings, `requests` the addresses that it
    asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._serials = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded: set[str] = set()  # ids of documents

    async def listen(self) -> None:
        """Take messages in until the tab is closed."""
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                self._answers.pop(value["id"]).set_result(value)
            else:
                self._on_event(value["method"], value["params"])

    def _on_event(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Page.lifecycleEvent" if params["name"] == "load":
                self._loaded.add(params["loaderId"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                entry = params["entry"]
                self.errors.append(f"{entry['text']} {entry.get('url', '')}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(str([arg.get("value") for arg in params["args"]]))

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Raises RuntimeError with the browser's own words."""
        serial = next(self._serials)
        answer = self._answers[serial] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": serial, "method": method, "params": params})
        async with asyncio.timeout(ANSWER_S):
            value = await answer
        if "error" in value:
            raise RuntimeError(f"{method}: {value['error']['message']}")
        result: dict[str, Any] = value["result"]
        return result

    async def open(self, url: str) -> None:
        """Go there and wait until all is loaded."""
        answer = await self.send("Page.navigate", url=url)
        async with asyncio.timeout(ANSWER_S):
            while answer["loaderId"] not in self._loaded:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise. Raises RuntimeError if it throws."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def until(self, script: str, limit_s: float = ANSWER_S) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(limit_s):
            while not await self.run(script):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        box = await self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            "node.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const {x, y, width, height} = node.getBoundingClientRect();"
            "return [x + width / 2, y + height / 2]; })()"
        )
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        await self.send("Input.dispatchMouseEvent", type="mousePressed", **place)
        await self.send("Input.dispatchMouseEvent", type="mouseReleased", **place)

    async def press(self, key: str) -> None:
        """A key of KEYS, or a single character."""
        code, number, text = KEYS.get(key, (key, ord(key[0].upper()), key))
        fields = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **fields)

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def prefer(self, **features: str) -> None:
        """Media features by their names, with _ for -: `prefer(prefers_color_scheme="dark")`."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self.send("Emulation.setEmulatedMedia", features=wanted)

    async def screenshot(self, path: Path) -> None:
        """Of all that can be seen without scrolling."""
        answer = await self.send("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(answer["data"]))  # noqa: ASYNC240


@contextlib.asynccontextmanager
async def open_page(chromium: str) -> AsyncIterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = [*FLAGS, f"--user-data-dir={folder}"]
        if os.getuid() == 0:
            flags.append("--no-sandbox")  # which root cannot have
        process = await asyncio.create_subprocess_exec(
            chromium,
            *flags,
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = await _port_of(Path(folder) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                    address = (await answer.json())["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=2**27) as socket:
                    page = Page(socket)
                    listener = asyncio.create_task(page.listen())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await page.send(f"{domain}.enable")
                    await page.send("Page.setLifecycleEventsEnabled", enabled=True)
                    yield page
                await listener
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _port_of(file: Path, process: asyncio.subprocess.Process) -> int:
    """Where the browser listens; it says so in a file once it does."""
    async with asyncio.timeout(START_S):
        while True:
            assert process.returncode is None, f"Chromium ended with status {process.returncode}"
            with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
                return int(file.read_text().splitlines()[0])  # noqa: ASYNC240
            await asyncio.sleep(0.05)
