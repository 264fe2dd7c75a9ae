"""Folders that are built once and kept: converted models.

A folder appears in the cache whole or not at all: it is built under another name and renamed. Runners that
start together build it once: the first takes a lock, the others wait for it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.model_runner.sources.errors import BadModel
from engine.model_runner.sources.progress import OnProgress


def cache_root(configured: str | None) -> Path:
    """The cache folder: as configured, else `fairslice` in the user's cache directory."""
    if configured is not None:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fairslice"


def cached_folder(root: Path, key: str, build: Callable[[Path], None], on_progress: OnProgress) -> Path:
    """The folder `root/key`; where it does not exist yet, `build` fills it first.

    `build` gets an empty folder on the same file system; if it raises, nothing is kept. Raises BadModel
    if the cache cannot be written.
    """
    folder = root / key
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock", on_progress):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise BadModel(f"cannot write the model cache {root}: {error}") from error
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill `folder` under a temporary name. The lock is held, so a leftover of that name is nobody's."""
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel releases it if this one dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("waiting for another process that converts the same model", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
