"""The folder of the default socket: ours alone, although it may stand where everybody can make folders."""

import os
import stat
from pathlib import Path

from engine.config import Config, ConfigError

PRIVATE = 0o700


def ensure_socket_folder(config: Config) -> None:
    """Make the folder of the default socket, for this user only. One that is there and could be another's is
    refused: whoever owns it could listen in our engine's place. Where `engine.socket` names a place, its
    folder is the operator's business.

    Raises ConfigError.
    """
    if config.engine.socket is None:
        _make_private(Path(config.socket_path).parent)


def _make_private(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(mode=PRIVATE)
        except FileExistsError:
            _take(folder)
    except OSError as error:
        raise _refused(folder, str(error.strerror)) from None


def _take(folder: Path) -> None:
    """Have a folder that is there for ourselves, if it is ours, and what is in it."""
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise _refused(folder, "it is a symbolic link")
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(folder, "it is not a folder")
    if found.st_uid != os.getuid():
        raise _refused(folder, f"it belongs to another user (uid {found.st_uid})")
    if stat.S_IMODE(found.st_mode) != PRIVATE:
        folder.chmod(PRIVATE)
    for name in os.listdir(folder):  # from a time when it was open: a socket would pass for our engine's
        owner = os.lstat(folder / name).st_uid
        if owner != os.getuid():
            raise _refused(folder, f"{name} in it belongs to another user (uid {owner})")


def _refused(folder: Path, why: str) -> ConfigError:
    return ConfigError(f"engine.socket: cannot use the default folder {folder}: {why}")
