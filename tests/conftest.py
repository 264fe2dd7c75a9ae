"""Where there is no NVIDIA driver, Triton's kernels run in its interpreter, on the CPU.

Triton looks when a kernel is defined, so this is said before any test imports one.
"""

import os
from pathlib import Path

if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
