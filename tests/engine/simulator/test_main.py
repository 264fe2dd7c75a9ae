"""The command line: a trace alone, and a run of loadgen beside its simulation."""

import pytest

from engine.simulator.__main__ import main

LOAD = ["--trace", "synthetic:rows=12,input=20-60,output=5-9", "--arrivals", "constant:5"]


def test_a_simulated_run_beside_itself_is_the_same(tmp_path, capsys):
    assert main([*LOAD, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["--beside", str(tmp_path / "run")]) == 0
    lines = {line[:30].strip(): line[30:].split() for line in capsys.readouterr().out.splitlines()}
    for label in ("output tokens", "time to first token p99", "completion p50"):
        cells = lines[label]
        assert cells
        assert cells[: len(cells) // 2] == cells[len(cells) // 2 :]


def test_a_closed_loop_runs_from_the_command_line(capsys):
    assert main([*LOAD[:2], "--arrivals", "closed:3"]) == 0
    out = capsys.readouterr().out
    assert "12 of 12" in out


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    assert main(["--beside", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_trace_or_a_run_is_needed(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--beside" in capsys.readouterr().err
