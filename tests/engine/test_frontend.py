"""Where the engine listens."""

import asyncio
from pathlib import Path

import pytest

from engine.frontend import Frontend, SocketTaken


def listen(path: Path) -> None:
    async def test() -> None:
        frontend = Frontend(1.0, lambda api_id, message: None, lambda api_id: None)
        server = await frontend.listen(str(path))
        server.close()
        await server.wait_closed()

    asyncio.run(test())


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    listen(tmp_path / "new folder" / "socket")
    listen(tmp_path / "new folder" / "socket")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    with pytest.raises(SocketTaken, match=f"engine.socket: cannot listen on {file}: "):
        listen(file)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "x" * 200, "file/socket"])
def test_a_place_that_cannot_be_had_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SocketTaken, match=r"engine\.socket: cannot listen on "):
        listen(tmp_path / name)
