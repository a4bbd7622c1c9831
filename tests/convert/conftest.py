"""A conversion that several files of tests look at."""

from __future__ import annotations

import pytest
from conftest import TINY

from convert import Conversion, convert


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> list[Conversion]:
    """The bundled model in 4 and 8 bits, of one pass."""
    folder = tmp_path_factory.mktemp("quantized")
    return convert(TINY, folder / "tiny", quantize=True, q_bits=[4, 8])
