"""Where there is no NVIDIA GPU, Triton's kernels run in its interpreter, on the CPU.

Triton looks when a kernel is defined, so this is said before any test imports one. Asking torch would take
longer than many a test.
"""

import os
from pathlib import Path

GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")  # the second one is WSL's

if not any(Path(file).exists() for file in GPU_FILES):
    os.environ.setdefault("TRITON_INTERPRET", "1")
