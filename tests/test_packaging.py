"""The files under packaging/ and the Dockerfile agree with the code that they start."""

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from api.worker import HARD_EXIT_S
from api.workers import KILL_AFTER_S
from engine.config import Config, parse_config
from fairslice.cli import COMMANDS
from fairslice.serve import API_GRACE_S, ENGINE_GRACE_S

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNIT = ROOT / "packaging" / "fairslice.service"


def setting(name: str) -> str:
    """Of the systemd unit, where it stands once."""
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


def test_a_stop_has_the_time_that_it_may_take() -> None:
    assert HARD_EXIT_S < KILL_AFTER_S < API_GRACE_S  # a worker, its parent, and theirs: the inner ends first
    longest_s = Config().server.drain_s + API_GRACE_S + ENGINE_GRACE_S
    assert float(setting("TimeoutStopSec")) > longest_s
    (stop_s,) = re.findall(r"docker stop --time (\d+)", DOCKERFILE)
    assert float(stop_s) > longest_s


def test_the_unit_starts_a_command_and_keeps_what_it_needs() -> None:
    _, command, *_ = setting("ExecStart").split()
    assert command in {each.name for each in COMMANDS}
    assert setting("KillMode") == "mixed"  # SIGTERM to the supervisor only
    assert setting("LimitMEMLOCK") == "infinity"
    assert setting("RestartPreventExitStatus") == "2"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_against_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/fairslice/bin/fairslice", "/bin/true")  # which is installed here
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^(User|Group)=.*", r"\1=root", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_copies_what_there_is_and_its_context_has_it() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"api", "engine", "fairslice", "loadgen"} <= set(sources)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in kept)


def test_the_image_runs_commands_that_there_are() -> None:
    names = {command.name for command in COMMANDS}
    assert re.search(r'^ENTRYPOINT \["tini", "--", "fairslice"\]$', DOCKERFILE, re.MULTILINE)
    for words in re.findall(r"\bCMD (\[.*\])$", DOCKERFILE, re.MULTILINE):
        assert json.loads(words)[-1] in names
    assert re.search(r"^USER (?!0|root)", DOCKERFILE, re.MULTILINE)


def test_the_images_configuration_serves_beyond_the_container() -> None:
    server = parse_config(tomllib.loads((ROOT / "packaging" / "container.toml").read_text())).server
    assert (server.host, server.open) == ("0.0.0.0", True)
