"""`loadgen` as a command, against a scripted server in a thread of its own."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadgen.cli import main, shown_command
from tests.loadgen.server import HEAD, Script, ScriptedServer, answer, chunk, sends, serving, token

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("no_matplotlib")  # drawing takes longer than all the rest
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@contextlib.contextmanager
def served(script: Script) -> Iterator[ScriptedServer]:
    """The server, on an event loop in a thread."""
    ready = threading.Event()
    state: dict[str, object] = {}

    async def serve() -> None:
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        async with serving(script) as server:
            state["server"] = server
            ready.set()
            await state["stop"].wait()  # type: ignore[attr-defined]

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield state["server"]  # type: ignore[misc]
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)  # type: ignore[attr-defined]
        thread.join(10)


def run(server: ScriptedServer, out: Path, *options: str, trace: str = "synthetic:rows=6,output=3") -> int:
    base = server.url.removesuffix("/completions")
    fixed = ["run", "--url", base, "--model", "m", "--trace", trace, "--out", str(out), "--warmup", "0"]
    return main([*fixed, *(options or ("--arrivals", "constant:500"))])


def test_a_run_that_goes_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(sends(answer(3))) as server:
        code = run(server, tmp_path / "x")
        assert len(server.bodies) == 6
    assert code == 0
    summary = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert (summary["finished"], summary["output_tokens"]) == (6, 18)
    assert len((tmp_path / "x" / "requests.jsonl").read_text().splitlines()) == 6
    assert "output tokens/s" in capsys.readouterr().out


def test_failed_requests_show_in_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n"
    with served(sends(refusal)) as server:
        code = run(server, tmp_path)
    assert code == 1
    assert "http 503: 6" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(sends(b"")) as server:
        url = server.url
    gone = ScriptedServer(sends(b""))
    gone.url = url
    assert run(gone, tmp_path, "--arrivals", "constant:500", "--warmup", "1") == 1
    captured = capsys.readouterr()
    assert "connection refused: 6" in captured.out
    assert "warm-up failed: connection refused" in captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n", ":1: missing column GeneratedTokens"),
        (AZURE + "2023-11-16,1,1\n2023-11-16,one,1\n", ":3: ContextTokens must be a whole number"),
        (AZURE + "2023-11-16,1,1\n2023-11-15,1,1\n", ":3: times out of order"),
    ],
)
def test_a_bad_trace_is_one_line_and_nothing_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with served(sends(answer(1))) as server:
        code = run(server, tmp_path / "x", trace=f"azure:{path}")
        assert server.bodies == []
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"loadgen: {path}{message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "x").exists()


def test_a_trace_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--trace", f"azure:{tmp_path}/none.csv"]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err


def test_warm_up_finds_out_about_usage_in_each_event(tmp_path: Path) -> None:
    async def script(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        options = body["stream_options"]
        usage = {"completion_tokens": 1} if "continuous_usage_stats" in options else None  # type: ignore[operator]
        writer.write(HEAD + chunk(token(finish="stop", usage=usage)) + b"0\r\n\r\n")

    with served(script) as server:
        assert run(server, tmp_path, "--arrivals", "constant:500", "--warmup", "2") == 0
        asked = ["continuous_usage_stats" in body["stream_options"] for body in server.bodies]  # type: ignore[operator]
    assert asked == [True] * 8
    with served(sends(answer(3))) as server:
        assert run(server, tmp_path, "--arrivals", "constant:500", "--warmup", "1") == 0
        asked = ["continuous_usage_stats" in body["stream_options"] for body in server.bodies]  # type: ignore[operator]
    assert asked == [True] + [False] * 6


def test_tenants_reach_the_server(tmp_path: Path) -> None:
    with served(sends(answer(3))) as server:
        tenants = ["--tenants", "round-robin:2", "--tenant-by", "key", "--api-key", "tenant-1=k1"]
        assert run(server, tmp_path, "--arrivals", "closed:1", *tenants) == 0
        keys = [line for head in server.headers for line in head.splitlines() if "Authorization" in line]
    assert keys == ["Authorization: Bearer k1", "Authorization: Bearer tenant-2"] * 3
    assert "k1" not in (tmp_path / "run.json").read_text()


def test_ctrl_c_writes_the_report_of_what_was_done(tmp_path: Path) -> None:
    done = threading.Event()

    async def script(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        if body["max_tokens"] == 1:
            writer.write(answer(1))
            return
        writer.write(HEAD + chunk(token()))
        await writer.drain()
        done.set()
        await asyncio.sleep(3600)

    trace = tmp_path / "trace.csv"
    times = ["00:00:00,5,1", "00:00:01,5,9", "01:00:00,5,9"]
    trace.write_text(AZURE + "".join(f"2023-11-16 {time}\n" for time in times))
    with served(script) as server:
        command = [sys.executable, "-m", "loadgen", "run", "--url", server.url.removesuffix("/completions")]
        command += ["--model", "m", "--trace", f"azure:{trace}", "--speedup", "10", "--warmup", "0"]
        command += ["--out", str(tmp_path / "x")]
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert done.wait(30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "The run was interrupted: 1 planned requests were not sent." in out
    assert "Traceback" not in err
    summary = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert (summary["finished"], summary["interrupted"], summary["not_sent"]) == (1, 1, 1)
    assert (tmp_path / "x" / "report.html").exists()


def test_chat_is_asked_in_text(tmp_path: Path) -> None:
    with served(sends(answer(3))) as server:
        assert run(server, tmp_path, "--arrivals", "closed:2", "--endpoint", "chat") == 0
        assert server.headers[0].startswith("POST /v1/chat/completions ")
        (message,) = server.bodies[0]["messages"]  # type: ignore[misc]
    assert message["role"] == "user"
    assert len(message["content"].split()) >= 128


def test_ctrl_c_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loadgen.cli.read_schedule", interrupt)
    assert main(["run", "--trace", "synthetic:", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "loadgen: interrupted\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trace", "azure"], "a trace is azure:FILE"),
        (["--trace", "synthetic:", "--arrivals", "poisson:0"], "must be a number above 0"),
        (["--trace", "synthetic:", "--arrivals", "poisson:1", "--speedup", "2"], "--speedup is for"),
        (["--trace", "synthetic:", "--endpoint", "chat", "--prompts", "ids"], "cannot be sent to the chat"),
        (["--trace", "synthetic:", "--tenant-weights", "x=2"], "names x, which is no tenant"),
        (["--trace", "synthetic:", "--tenant-by", "cookie"], "--tenant-by: a tenant is told by"),
        (["--trace", "synthetic:", "--url", "localhost"], "must begin with http://"),
        (["--trace", "synthetic:", "--rows", "5:5"], "holds no row"),
        (["--trace", "synthetic:", "--extra", "[1]"], "must be a JSON object"),
    ],
)
def test_bad_options_exit_with_their_reason(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_options_that_only_the_rows_refute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(sends(answer(1))) as server:
        assert run(server, tmp_path, "--arrivals", "trace") == 2
        assert run(server, tmp_path, "--arrivals", "poisson:1", "--rows", "50:60") == 2
        assert server.bodies == []
    err = capsys.readouterr().err
    assert "this trace has no times" in err
    assert "nothing to send" in err


def test_compare_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(sends(answer(3))) as server:
        assert run(server, tmp_path / "one") == 0
        assert run(server, tmp_path / "two") == 0
    capsys.readouterr()
    assert (
        main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "both")]) == 0
    )
    assert "one" in capsys.readouterr().out.splitlines()[0]
    assert (tmp_path / "both" / "report.html").exists()
    assert main(["compare", str(tmp_path / "none")]) == 2
    assert "run.json: No such file" in capsys.readouterr().err


def test_api_keys_are_left_out_of_the_report() -> None:
    shown = shown_command(["run", "--api-key", "k1", "--api-key=k2", "--seed", "1"])
    assert shown == "loadgen run --api-key ... --api-key=... --seed 1"


def test_an_api_key_cannot_be_given_in_a_way_that_the_report_would_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--trace", "synthetic:rows=1,input=1,output=1", "--api-k", "secret"])
    assert "--api-k" in capsys.readouterr().err
