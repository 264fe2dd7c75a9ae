"""API keys: their file, the command that changes it, and what a server does with them."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from api import auth
from api.auth import KeyAuth, make_auth
from api.keys import main
from engine.config import ConfigError, ServerConfig
from engine.messages import RateState, Rejected
from tests.api.fake_engine import say
from tests.api.harness import Answer, Api, run, running_api, until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, capsys: pytest.CaptureFixture[str], name: str, *options: str) -> str:
    """The new key."""
    assert main(["--file", str(file), "add", name, *options]) == 0
    return capsys.readouterr().out.strip()


async def ask(api: Api, key: str | None, path: str = "/v1/completions", **fields: object) -> Answer:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    if path != "/v1/completions":
        return await api.ask("GET", path, headers=headers)
    return await api.post(path, {"model": "fake", "prompt": "x"} | fields, headers)


def test_a_key_is_shown_once_and_kept_as_a_hash(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = add(file, capsys, "alice", "--weight", "2", "--tokens-per-minute", "1000")
    assert key.startswith("fs-")
    assert len(key) > 50
    assert key.split("-", 2)[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["--file", str(file), "list"]) == 0
    printed = capsys.readouterr().out
    assert "alice weight=2.0 tokens_per_minute=1000" in printed
    assert key.split("-", 2)[1] in printed
    assert key not in printed
    assert [entry.name for entry in file.parent.iterdir()] == ["keys.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_changed_file_keeps_its_owner(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--file", str(file), "add", "alice"]) == 0
    os.chown(file, 10001, 10002)
    assert main(["--file", str(file), "add", "bob"]) == 0
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (10001, 10002, 0o600)


def test_a_second_key_keeps_the_tenants_limits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [add(file, capsys, "alice", "--weight", "2"), add(file, capsys, "alice", "--nice", "-3")]
    assert keys[0] != keys[1]
    tenants = KeyAuth(file)._keys
    (tenant,) = {tenant.name: tenant for _, tenant in tenants.values()}.values()
    assert len(tenants) == 2
    assert tenant.weight == pytest.approx(2 * 1.25**3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "no/slash"], "name"),
        (["add", "x", "--weight", "0"], "weight"),
        (["add", "x", "--nice", "40"], "nice"),
        (["list"], "cannot be read"),
    ],
)
def test_bad_commands_are_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["--file", str(file), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not file.exists()


def test_only_known_keys_are_served_and_tenants_are_told_apart(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = add(file, capsys, "alice", "--weight", "2", "--max-prompts", "5")
    bob = add(file, capsys, "bob", "--operator")

    async def test() -> None:
        async with running_api(server=ServerConfig(port=0, keys=str(file))) as api:
            for wrong in (None, "", "fs", alice[:-1], alice + "x", "fs-" + alice, bob[:16] + alice[16:], "é"):
                answer = await ask(api, wrong)
                assert answer.status == 401
                assert answer.json["error"]["code"] == "invalid_api_key"
                assert (await ask(api, wrong, "/v1/models")).status == 401
            assert not api.engine.submits
            for key in (alice, bob):
                assert (await ask(api, key, cache_salt="s")).status == 200
            first, second = api.engine.submits
            assert (first.tenant, first.weight, second.tenant, second.weight) == ("alice", 2.0, "bob", 1.0)
            assert first.limits is not None
            assert first.limits.max_prompts == 5
            assert first.cache_salt != second.cache_salt
            assert (await ask(api, alice, "/metrics")).status == 403
            assert (await ask(api, bob, "/metrics")).status == 200
            assert (await ask(api, None, "/health")).status == 200

    run(test())


def test_changes_are_noticed_while_running(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RELOAD_S", 0.0)
    alice = add(file, capsys, "alice")

    async def test() -> None:
        async with running_api(server=ServerConfig(port=0, keys=str(file))) as api:
            bob = add(file, capsys, "bob")
            assert (await ask(api, bob)).status == 200
            assert main(["--file", str(file), "remove", "alice"]) == 0
            assert (await ask(api, alice)).status == 401
            file.write_text("{ broken")  # noqa: ASYNC240
            assert (await ask(api, bob)).status == 200
            file.unlink()  # noqa: ASYNC240
            assert (await ask(api, bob)).status == 200

    run(test())


def test_limits_are_told_in_headers() -> None:
    async def test() -> None:
        rates = {"tokens": RateState(limit=1000, remaining=7, reset_s=59.5)}
        reject = Rejected(request_id="", code="rate_limit_exceeded", message="used up", retry_after_s=12.2)
        async with running_api(rates=rates) as api:
            for stream in (False, True):
                headers = (await api.complete(stream=stream)).headers
                assert headers["x-ratelimit-limit-tokens"] == "1000"
                assert headers["x-ratelimit-remaining-tokens"] == "7"
                assert headers["x-ratelimit-reset-tokens"] == "59.500s"
            api.engine.reject = reject
            answer = await api.complete()
            assert answer.status == 429
            assert answer.headers["retry-after"] == "13"
            assert answer.headers["x-ratelimit-remaining-tokens"] == "7"

    run(test())


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        make_auth(ServerConfig(host=host))
    make_auth(ServerConfig(host="0.0.0.0", open=True))
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match=r"server\.host.*server\.keys.*server\.open"):
            make_auth(ServerConfig(host=host))
    with pytest.raises(ConfigError, match=r"server\.keys: .*cannot be read"):
        make_auth(ServerConfig(keys="/nowhere/keys.json"))


def test_a_removed_key_ends_nothing_that_runs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice = add(file, capsys, "alice")

    async def test() -> None:
        server = ServerConfig(port=0, keys=str(file))
        async with running_api(server=server, script=say("z" * 200), step_s=0.001) as api:
            running = asyncio.create_task(ask(api, alice, stream=True, max_tokens=200))
            await until(lambda: api.engine.running)
            assert main(["--file", str(file), "remove", alice.split("-")[1]]) == 0
            assert (await running).events[-1] == "[DONE]"

    run(test())
