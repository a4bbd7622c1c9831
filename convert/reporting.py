"""What mlx-lm's quantizers draw and print, told to who wants to know instead."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_PRINTING = ("tqdm", "print_trainable_parameters")


@contextmanager
def reported(module: ModuleType, progress: Callable[[str], None], doing: str) -> Iterator[None]:
    """Within it, a module of mlx-lm's draws no bars on standard error and prints nothing to
    standard output; how far it is goes to `progress`, behind what it is `doing`."""
    before = {name: getattr(module, name) for name in _PRINTING if hasattr(module, name)}

    class Bar:
        """As much of tqdm as there is in use."""

        def __init__(self, iterable: Iterable, total: int | None = None, **options: Any):
            self._iterable = iterable
            self._total = len(iterable) if total is None else total  # type: ignore[arg-type]

        def __iter__(self) -> Iterator:
            for number, item in enumerate(self._iterable, 1):
                progress(f"{doing}, {number} of {max(number, self._total)}")
                yield item

        def set_description(self, *args: Any, **options: Any) -> None: ...

        @staticmethod
        def write(*args: Any, **options: Any) -> None: ...

    stand_ins = {"tqdm": Bar, "print_trainable_parameters": lambda model: None}
    for name in before:
        setattr(module, name, stand_ins[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
