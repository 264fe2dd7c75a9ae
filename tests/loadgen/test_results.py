from pathlib import Path

import pytest

from loadgen.results import REQUESTS_FILE, RUN_FILE, ErrorKind, LoadError, Outcome, load_run, save_run
from tests.loadgen.records import record, run_info


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    failed = record(1, chunks=[], outcome=Outcome.FAILED, error=ErrorKind.STALLED, detail="nothing came")
    records = [record(0, chunks=[0.5, 0.75]), failed]
    save_run(tmp_path, run_info(), records)
    assert load_run(tmp_path) == (run_info(), records)


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"run\.json: No such file"):
        load_run(tmp_path)


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    save_run(tmp_path, run_info(), [record(0)])
    with (tmp_path / REQUESTS_FILE).open("a") as file:
        file.write('{"index": "x"}\n')
    with pytest.raises(LoadError, match=r"requests\.jsonl:2: "):
        load_run(tmp_path)
    (tmp_path / RUN_FILE).write_text("{}")
    with pytest.raises(LoadError, match=r"run\.json:1: "):
        load_run(tmp_path)
