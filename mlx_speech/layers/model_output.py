"""What models return: named fields, of which those that are there are items as well."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

from ..errors import InputError
from ..fields import fitted

#: other name of an argument or a field -> its name: the cache is `cache` from transformers 5.24 on
ALIASES = {"cache": "past_key_values"}


def take_aliases(arguments: dict[str, Any]) -> None:
    """Give arguments that have their other names those that they are read by.

    Raises:
        InputError: one is given by both.
    """
    for alias in ALIASES.keys() & arguments.keys():
        name = ALIASES[alias]
        if name in arguments:
            raise InputError(f"{alias} and {name} are the same; give one of them")
        arguments[name] = arguments.pop(alias)


@dataclass(eq=False)
class ModelOutput(dict):
    """Base of what models return, a dataclass and a dictionary at once, as in transformers.

    `out.logits` is `out["logits"]`; `out[0]` and `out[:2]` count the fields that are not None, in
    their order, and iterating gives their names. A field that is None is no item. By the names in
    `ALIASES` they are read as well.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in ALIASES:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return getattr(self, ALIASES[name])

    def __setattr__(self, name: str, value: Any) -> None:
        name = ALIASES.get(name, name)
        super().__setattr__(name, value)
        if value is None:
            self.pop(name, None)
        else:
            super().__setitem__(name, value)

    __setitem__ = __setattr__

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return super().__getitem__(ALIASES.get(key, key))
        return self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(ALIASES.get(key, key) if isinstance(key, str) else key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(ALIASES.get(key, key), default)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of all fields that are not None, in their order."""
        return tuple(self[field.name] for field in fields(self) if field.name in self)


def can_return_tuple(call: Callable) -> Callable:
    """Give a model's call, which returns a `ModelOutput`, the argument `return_dict`: False makes a
    tuple of it. By default the configuration decides, which says True unless told otherwise.
    Arguments may have the names in `ALIASES`, too."""

    @wraps(call)
    def either(self, *args: Any, return_dict: bool | None = None, **inputs: Any) -> Any:
        take_aliases(inputs)
        as_output = asked(self.config, "return_dict", return_dict, default=True)
        output = call(self, *args, **inputs)
        return output if as_output else output.to_tuple()

    return either


def asked(config: Any, name: str, value: bool | None, default: bool = False) -> bool:
    """An argument of a call, which by default is as the configuration says, or else the default.

    Raises:
        InputError: it is neither true nor false.
    """
    if value is None:
        return bool(getattr(config, name, default))
    return fitted(name, value, bool)
