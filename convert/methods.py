"""Methods of quantization: their names, and what goes with them."""

import os
from collections.abc import Sequence
from typing import Any

from mlx_speech.errors import InputError

#: name -> the program of mlx-lm that quantizes text models so
METHODS = {
    "rtn": "mlx_lm.convert",
    "awq": "mlx_lm.awq",
    "gptq": "mlx_lm.gptq",
    "dwq": "mlx_lm.dwq",
    "dynamic": "mlx_lm.dynamic_quant",
}


def check_options(
    method: str,
    *,
    quantize: bool,
    q_bits: Any = None,
    q_mode: str = "affine",
    quant_predicate: Any = None,
    calibration: Sequence[str | os.PathLike] | None = None,
    target_bpw: float | None = None,
    dry_run: bool = False,
) -> None:
    """Refuse what no method does, before anything is read; arguments as in `convert`.

    Raises:
        InputError: they contradict each other.
    """
    if method not in METHODS:
        raise InputError.must_be("method", method, f"one of {', '.join(METHODS)}")
    if target_bpw is not None and not target_bpw > 0:
        raise InputError.must_be("target_bpw", target_bpw, "above 0")
    learning, dynamically = method != "rtn", method == "dynamic"
    several = [q_bits] if q_bits is None or isinstance(q_bits, int) else list(q_bits)
    wrong = [
        (calibration and not learning, "{calibration} is for a {method} that learns"),
        (target_bpw is not None and not dynamically, "{target_bpw} is for {method} dynamic"),
        (learning and not quantize, "{method} {value} needs {quantize}"),
        (learning and q_mode != "affine", "{method} {value} needs {q_mode} affine"),
        (learning and len(several) > 1, "{method} {value} takes one number of {q_bits} at a time"),
        (
            dynamically and quant_predicate is not None,
            "{method} {value} chooses the bits; leave out {quant_predicate}",
        ),
        (
            dynamically and dry_run,
            "{method} {value} runs the model to choose the bits, and {dry_run} runs nothing",
        ),
        (
            method in ("dwq", "dynamic") and several == [8],
            "{method} {value} is for {q_bits} below 8",
        ),
    ]
    for is_so, text in wrong:
        if is_so:
            raise InputError.about(text, value=method)
