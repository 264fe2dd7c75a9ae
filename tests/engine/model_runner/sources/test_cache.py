import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from engine.model_runner.sources.cache import cached_folder
from engine.model_runner.sources.errors import BadModel
from engine.model_runner.sources.progress import ignore_progress


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise BadModel("broken")

    with pytest.raises(BadModel, match="broken"):
        cached_folder(tmp_path, "key", build, ignore_progress)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "key.part").mkdir()
    (tmp_path / "key.part" / "half").touch()
    made = cached_folder(tmp_path, "key", lambda folder: (folder / "whole").touch(), ignore_progress)
    assert [path.name for path in made.iterdir()] == ["whole"]


def _build_slowly(root: Path, barrier: Any, counted: Any) -> None:
    def build(folder: Path) -> None:
        with counted.get_lock():
            counted.value += 1
        (folder / "whole").touch()

    barrier.wait()
    assert (cached_folder(root, "key", build, ignore_progress) / "whole").exists()


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counted = context.Barrier(4), context.Value("i", 0)
    processes = [context.Process(target=_build_slowly, args=(tmp_path, barrier, counted)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert counted.value == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadModel, match="cannot write the model cache"):
        cached_folder(tmp_path / "file" / "cache", "key", lambda folder: None, ignore_progress)
