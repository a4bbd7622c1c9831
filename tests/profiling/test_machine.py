"""What a benchmark's numbers belong to."""

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_speech.profiling.machine import Machine, blas_name


def test_this_machine():
    machine = Machine.this()
    assert f"{os.cpu_count()} cores" in machine.name
    assert machine.mlx == mx.__version__
    assert machine.device.startswith(("GPU", "CPU"))
    assert machine.device.endswith(blas_name())
    assert machine.memory_bytes > 2**28


def test_mlx_is_not_imported_for_it():
    code = (
        "import sys; from mlx_speech.profiling.machine import machine_name; machine_name(); "
        "print('mlx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.skipif(sys.platform != "linux", reason="MLX has a good BLAS elsewhere")
def test_the_blas_of_numpy_is_not_that_of_mlx():
    code = "import numpy; from mlx_speech.profiling.machine import blas_name; print(blas_name())"
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == ", no OpenBLAS found\n"
