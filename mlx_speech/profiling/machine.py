"""What is measured on. MLX is imported only by what asks for it: a process inherits the largest
resident size of the one that started it."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What a measurement was made on.

    name: see `machine_name`.
    mlx: its version.
    device: see `device_name` and `blas_name`.
    """

    name: str
    memory_bytes: int
    mlx: str
    device: str

    @classmethod
    def this(cls) -> Machine:
        """This one."""
        import mlx.core as mx

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(machine_name(), memory, mx.__version__, device_name() + blas_name())


def machine_name() -> str:
    """Operating system, processor cores and Python."""
    return f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def device_name() -> str:
    """What MLX computes on, with its chip's name where that is known."""
    import mlx.core as mx

    device = mx.default_device()
    kind = "GPU" if device.type == mx.DeviceType.gpu else "CPU"
    name = str(mx.device_info(device).get("device_name", ""))
    return f"{kind} ({name})" if name else kind


def blas_name() -> str:
    """What to add to a header about MLX, in a process that uses it: empty but on Linux, whose build
    of MLX has a slow BLAS unless OpenBLAS is in its place."""
    if sys.platform != "linux":
        return ""
    # NumPy's own, libscipy_openblas, has other names in it, which MLX does not call
    loaded = re.search(r"/libopenblas[^/\n]*$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return ", OpenBLAS preloaded" if loaded else ", no OpenBLAS found"
