"""Hugging Face checkpoints -> MLX checkpoints, quantized or not.

Installed as `mlx_speech.convert`; in a clone also `convert`.
"""

from importlib import import_module

_HOME = {"convert": "conversion", "Conversion": "plan", "Plan": "plan"}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    # nothing heavy before it is used, so that --help answers at once
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
