"""Where compiled code is kept between starts."""

import os
from pathlib import Path


def use_compile_cache(root: Path) -> None:
    """Have torch's compiler and Triton keep what they compile under `root`, where the next start finds it.

    Folders that the environment names already come first. Comes before anything is compiled.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(root / "triton"))
