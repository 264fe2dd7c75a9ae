"""The page's files, and what it is told of the engine."""

import asyncio
import time
from pathlib import Path

import pytest

from api.auth import Tenant
from api.keys import main
from api.live import REFRESH_S, LiveFeed
from engine.config import ServerConfig
from engine.messages import SliceFate, SliceRecord
from tests.api.harness import run, running_api


def slice_of(tenant: str, prompt: int, end_ns: int) -> SliceRecord:
    return SliceRecord(
        prompt=prompt,
        tenant=tenant,
        device="cpu",
        slot=0,
        arrival_ns=end_ns - 9000,
        start_ns=end_ns - 5000,
        first_token_ns=end_ns - 2000,
        end_ns=end_ns,
        prefilled=7,
        sampled=3,
        fate=SliceFate.PREEMPTED,
    )


async def wait_for_a_refresh() -> None:
    await asyncio.sleep(REFRESH_S)


def test_the_page_is_served_with_its_files_and_may_load_nothing_else() -> None:
    async def test() -> None:
        async with running_api() as api:
            page = await api.get("/")
            assert page.status == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert page.headers["cache-control"] == "no-cache"
            again = await api.ask("GET", "/", headers={"if-none-match": page.headers["etag"]})
            assert (again.status, again.body) == (304, b"")
            script = await api.get("/static/main.js")
            assert script.headers["content-type"] == "text/javascript; charset=utf-8"
            assert script.headers["etag"] != page.headers["etag"]
            for path in ("/static/none.js", "/static/..%2fapp.py", "/static/__init__.py", "/static/"):
                assert (await api.get(path)).json["error"]["code"] == "unknown_url"

    run(test())


def test_a_reader_gets_each_slice_once() -> None:
    async def test() -> None:
        async with running_api() as api:
            now_ns = time.monotonic_ns()
            api.engine.slices = [slice_of("default", 1, now_ns - 2000), slice_of("default", 2, now_ns - 1000)]
            first = (await api.get("/live/state")).json
            assert [record["prompt"] for record in first["models"][0]["ended"]] == [1, 2]
            api.engine.slices.append(slice_of("default", 3, time.monotonic_ns()))
            await wait_for_a_refresh()
            later = (await api.get(f"/live/state?cursor={first['cursor']}")).json
            assert [record["prompt"] for record in later["models"][0]["ended"]] == [3]
            newcomer = (await api.get("/live/state")).json
            assert [record["prompt"] for record in newcomer["models"][0]["ended"]] == [1, 2, 3]
            stranger = (await api.get(f"/live/state?cursor={10**17}")).json
            assert len(stranger["models"][0]["ended"]) == 3

    run(test())


def test_many_readers_cost_the_engine_one_question() -> None:
    async def test() -> None:
        async with running_api() as api:
            now_s = 100.0
            feed = LiveFeed(api.services.client, api.services.metrics, lambda: now_s)
            states = await asyncio.gather(*(feed.state(Tenant(), 0) for _ in range(20)))
            assert api.engine.live_asked == [0]
            assert len({state.now_ns for state in states if state is not None}) == 1
            now_s += REFRESH_S
            assert await feed.state(Tenant(), 0) is not None
            assert api.engine.live_asked == [0, states[0].now_ns]

    run(test())


def test_latencies_are_cumulative_over_all_requests() -> None:
    async def test() -> None:
        async with running_api() as api:
            await api.complete(max_tokens=5)
            latencies = (await api.get("/live/state")).json["latencies"]
            assert latencies["first_token"][-1] == [None, 1]
            assert latencies["gap"][-1][0] is None
            counts = [count for _, count in latencies["gap"]]
            assert counts == sorted(counts)

    run(test())


def test_with_keys_a_tenant_sees_its_own_and_an_operator_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    keys = {}
    for name, more in (("alice", []), ("root", ["--operator"])):
        assert main(["--file", str(file), "add", name, *more]) == 0
        keys[name] = capsys.readouterr().out.strip().splitlines()[0]

    async def test() -> None:
        async with running_api(server=ServerConfig(port=0, keys=str(file))) as api:
            now_ns = time.monotonic_ns()
            api.engine.slices = [
                slice_of(name, n, now_ns - 9 + n) for n, name in enumerate(("alice", "bob", "carol"))
            ]
            assert (await api.get("/live/state")).status == 401
            assert (await api.get("/")).status == 200

            async def ask(name: str) -> dict:
                headers = {"authorization": f"Bearer {keys[name]}"}
                return (await api.ask("GET", "/live/state", headers=headers)).json

            everything = (await ask("root"))["models"][0]
            assert [tenant["name"] for tenant in everything["tenants"]] == ["alice", "bob", "carol"]
            answer = await ask("alice")
            assert not answer["sees_all"]
            own = answer["models"][0]
            assert [(t["name"], t["num_waiting"]) for t in own["tenants"]] == [("alice", 2), ("", 4)]
            assert own["ended"][0] == everything["ended"][0]
            for record in own["ended"][1:]:
                assert (record["tenant"], record["prompt"], record["sampled"]) == ("", 0, 0)
                assert record["fate"] == "preempted"
            assert "bob" not in str(answer)

    run(test())


def test_without_an_engine_and_with_a_bad_cursor() -> None:
    async def test() -> None:
        async with running_api(start_engine=False) as api:
            answer = await api.get("/live/state")
            assert (answer.status, answer.json["error"]["code"]) == (503, "engine_unavailable")
            for cursor in ("x", "-1", "1.5", "9" * 19, "%D9%A3"):
                answer = await api.get(f"/live/state?cursor={cursor}")
                assert (answer.status, answer.json["error"]["param"]) == (400, "cursor")

    run(test())
