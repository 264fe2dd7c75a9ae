"""The folder of the default socket is ours alone, or is refused."""

import os
import stat
from pathlib import Path

import pytest

from engine.config import Config, ConfigError, EngineConfig
from engine.socket_folder import ensure_socket_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"fairslice-{os.getuid()}"


def mode_of(folder: Path) -> int:
    return stat.S_IMODE(folder.lstat().st_mode)


def test_it_is_made_for_this_user_alone(folder: Path) -> None:
    ensure_socket_folder(Config())
    ensure_socket_folder(Config())
    assert mode_of(folder) == 0o700
    assert Path(Config().socket_path).parent == folder


def test_one_that_was_open_to_others_is_closed(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    ensure_socket_folder(Config())
    assert mode_of(folder) == 0o700


def test_what_others_put_into_one_that_was_open_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "engine.sock").touch()
    owner, lstat = os.getuid(), os.lstat

    def lstat_of_another(path: Path) -> os.stat_result:
        found = lstat(path)
        return os.stat_result((*found[:4], owner + 1, *found[5:]))

    monkeypatch.setattr(os, "lstat", lstat_of_another)
    with pytest.raises(
        ConfigError, match=rf"engine\.sock in it belongs to another user \(uid {owner + 1}\)$"
    ):
        ensure_socket_folder(Config())


def test_a_symbolic_link_is_refused(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    folder.symlink_to(elsewhere)
    with pytest.raises(
        ConfigError, match=rf"^engine\.socket: cannot use the .* {folder}: it is a symbolic link$"
    ):
        ensure_socket_folder(Config())
    assert mode_of(elsewhere) == 0o755


def test_what_is_no_folder_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        ensure_socket_folder(Config())


def test_one_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    monkeypatch.setattr(Config, "socket_path", str(folder / "engine.sock"))
    with pytest.raises(ConfigError, match=rf"belongs to another user \(uid {owner}\)"):
        ensure_socket_folder(Config())
    assert mode_of(folder) == 0o755


def test_a_place_that_cannot_be_made_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.parent / "file"))
    with pytest.raises(ConfigError, match=r"^engine\.socket: cannot use the default folder .*: File exists"):
        ensure_socket_folder(Config())


def test_the_folder_of_a_place_that_was_named_is_left_alone(folder: Path, tmp_path: Path) -> None:
    named = EngineConfig(socket=str(tmp_path / "open" / "engine.sock"))
    ensure_socket_folder(Config(engine=named))
    assert not folder.exists()
    assert not (tmp_path / "open").exists()
