"""A wheel of this checkout, in an environment of its own, has everything that it takes to serve."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.served import served

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "engine", "fairslice", "loadgen")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the build writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        copytree(ROOT / package, folder / "source" / package, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that has the wheel, and otherwise what the tests have but for this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file adds its packages, and not what the .pth files there would: an editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files_of(package: str) -> set[str]:
    """All that is in a package, by its path from the root."""
    files = (file for file in (ROOT / package).rglob("*") if file.is_file())
    return {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}


def test_it_has_every_file_of_every_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == set().union(*map(files_of, PACKAGES))


@pytest.mark.parametrize(
    "command",
    ["fairslice", "fairslice serve", "fairslice engine", "fairslice api", "fairslice keys", "loadgen"],
)
def test_its_commands_answer_help(command: str, bin_folder: Path, tmp_path: Path) -> None:
    name, *words = command.split()
    done = subprocess.run(
        [bin_folder / name, *words, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: {command}")


def test_it_is_what_is_imported(bin_folder: Path, tmp_path: Path) -> None:
    script = "import api, engine.config, sys; print(engine.config.__file__)"
    done = subprocess.run(
        [bin_folder / "python", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(bin_folder.parent))


def test_it_serves_where_other_modules_have_the_same_names(bin_folder: Path, tmp_path: Path) -> None:
    for name in ("api", "engine"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module was imported')\n")
    config = tmp_path / "fairslice.toml"
    config.write_text(
        '[[models]]\npath = "dummy:tiny"\nmax_model_len = 256\n'
        '[[devices]]\nname = "cpu"\nmemory = "4MiB"\nthreads = 1\n[memory]\nhost = "4MiB"\n'
        f'[server]\nport = 0\n[engine]\nsocket = "{tmp_path}/engine.sock"\n'
    )
    with served([bin_folder / "fairslice", "serve"], tmp_path) as printed:
        assert printed[0].startswith("tiny is ready")
