"""Jinja in a sandbox that also bounds what a template may take: time, and memory.

A template is a program of a stranger's. Jinja's own sandbox bounds what it reaches; here every step
that can repeat or make something large is counted as well, most of them before they are made.
"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import wraps
from string import Formatter
from time import monotonic, thread_time
from typing import Any

from jinja2 import Environment, nodes, pass_context, pass_eval_context, runtime
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ..errors import CheckpointError

MAX_SOURCE = 100_000  #: characters of a template; those of released models have up to 30 000
MAX_SECONDS = 2  #: of the processor; the templates of released models take milliseconds
MAX_SIZE = 1 << 22  #: of one value
MAX_MADE = 1 << 26  #: of all that is made
_MAX_OPERATION = 1 << 25  # size of what an operation could at most make of its operands
_UNIT = 8  #: size of a value apart from its characters and items; one stands for up to 8 bytes
_MAX_INTEGER_BITS = 1 << 14

#: filters and methods whose results may be as large as the product of their operands: a number
#: among these is a width or a count, and a text may be put in many times
_EXPANDING = {
    *("center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "replace", "join"),
    *("translate", "indent", "wordwrap", "batch", "slice", "round", "sum", "tojson"),
    *("pprint", "striptags", "truncate", "urlize", "xmlattr"),
}
#: those of them that take the square of it
_QUADRATIC = {"wordwrap", "round", "sum", "pprint", "striptags", "urlize", "xmlattr"}
#: filters that take long for each item or character, as if it were that many
_SLOW = dict.fromkeys(("sort", "dictsort", "unique", "groupby", "min", "max", "title"), 64)
# what stands in a directive of a %-format between its name and its letter
_PERCENT = re.compile(r"%(?:\([^)%]*\))?([-#0 +.\d*]*)")


class Namespace(runtime.Namespace):
    """Jinja's, except that what is in it is not written out with it."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Meter:
    """Counts what one rendering takes.

    Args:
        data: what it is given: plain data, as from JSON.

    Raises:
        CheckpointError: in every method, once it is too much.
    """

    def __init__(self, data: dict[str, Any]):
        self._begin, self._look_at = thread_time(), monotonic() + MAX_SECONDS
        self._made = 0
        self._sizes: dict[int, int] = {}
        self._data = data  # lives as long as the sizes of its parts, which go by their ids
        self._measure(data)

    def _measure(self, data: Any) -> int:
        size = _UNIT + (len(data) if isinstance(data, str) else 0)
        if isinstance(data, dict | list):
            size += sum(map(self._measure, data))
            size += sum(map(self._measure, data.values() if isinstance(data, dict) else ()))
            self._sizes[id(data)] = size
        return size

    def size(self, value: Any, seen: dict[int, int] | None = None) -> int:
        """Size of a value; what it holds several times counts as often, since so it is written.

        Args:
            seen: sizes of lists and the like that are part of it, by their ids.
        """
        if isinstance(value, str | bytes):
            return _UNIT + len(value)
        if not isinstance(value, Collection) or isinstance(value, range):
            return _UNIT
        seen = {} if seen is None else seen
        size = self._sizes.get(id(value)) or seen.get(id(value))
        if size is None:
            self.add(0)
            size = _UNIT + sum(self.size(item, seen) for item in value)
            if isinstance(value, dict):
                size += sum(self.size(item, seen) for item in value.values())
            seen[id(value)] = size
        self.check(size)
        return size

    def check(self, size: float, most: int = MAX_SIZE) -> None:
        """Refuse one value of that size, or an operation with `most`."""
        if size > most:
            raise _too_much(f"makes a text or list of more than {most >> 20} million characters")

    def add(self, size: int) -> None:
        """Count something that was made, and look at the clock."""
        self._made += size
        if self._made > MAX_MADE:
            raise _too_much(f"makes more than {MAX_MADE >> 20} million characters")
        # the processor's time is slow to ask for, and no more than the wall's
        if monotonic() > self._look_at and thread_time() > self._begin + MAX_SECONDS:
            raise _too_much(f"takes more than {MAX_SECONDS} seconds")

    def operate(
        self, name: str, operands: list[Any], function: Callable, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a filter or a method, whose operands are those, a text or list first."""
        sizes = [self.size(operand) for operand in operands]
        if name in ("format", "format_map"):
            # the method's fields are in braces, the filter's behind percent signs
            text = operands[0] if isinstance(operands[0], str) else ""
            self.check(_formatted_size(_brace_fields(text) + _PERCENT.findall(text), text, sizes))
        elif name in _EXPANDING:
            most = 1
            for operand, size in zip(operands, sizes, strict=True):
                number = isinstance(operand, int | float)
                most *= 1 + (abs(operand) if number and operand is not operands[0] else size)
            self.check(most * most if name in _QUADRATIC else most, _MAX_OPERATION)
        elif name in _SLOW:
            self.check(sizes[0] * _SLOW[name], _MAX_OPERATION)
        result = function(*args, **kwargs)
        # the parts of a text are new, the items of a list were there before
        parts = operands and isinstance(operands[0], str | bytes)
        self.add(self.size(result) if parts else shallow_size(result))
        return result


def shallow_size(value: Any) -> int:
    """Size of a value without that of its items."""
    sized = isinstance(value, str | bytes | list | tuple | dict)
    return _UNIT + (len(value) * (1 if isinstance(value, str | bytes) else _UNIT) if sized else 0)


def _too_much(what: str) -> CheckpointError:
    return CheckpointError(f"the chat template {what}: it is broken or none; give a plain prompt")


def _brace_fields(text: str) -> list[str]:
    try:
        return [spec for *_, spec, _ in Formatter().parse(text) if spec is not None]
    except ValueError:  # not a format of this kind
        return []


def _formatted_size(fields: list[str], text: str, sizes: list[int]) -> float:
    """How large a format may become with operands of these sizes, its own first."""
    if any("*" in field or "{" in field for field in fields):  # a width that an operand says
        return float("inf")
    widths = sum(int(number) for field in fields for number in re.findall(r"\d+", field))
    return len(text) + widths + len(fields) * sum(sizes[1:])


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """An environment for one rendering.

    Args:
        data: the variables of the template, plain data.
        filters: functions by name, beside Jinja's own.
        options: of the environment.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, data: dict[str, Any], filters: dict[str, Callable], **options: Any):
        # nothing is computed while compiling: `"x" * 10**10` would be
        super().__init__(optimized=False, finalize=_output, **options)
        self.meter = Meter(data)
        self._data = data
        known: dict[str, Callable[..., Any]] = {**FILTERS, **filters}
        self.filters = {name: self._metered(name, function) for name, function in known.items()}
        self.filters |= {_TICK: self.meter.add, _CHECKED: self._checked}
        self.filters |= {_CONCATENATED: self._concatenated, _SLICED: self._sliced}
        tests: dict[str, Any] = dict(self.tests)
        for name, test in tests.items():
            if test.__module__ == "_operator" or name == "in":  # those that compare
                self.tests[name] = self._metered(name, test)
        self.globals["namespace"] = Namespace
        del self.globals["lipsum"]

    def render(self, source: str) -> str:
        """What a template makes of the data.

        Raises:
            CheckpointError: it is too long, takes too long, or makes too much.
            Exception: whatever a template may raise.
        """
        if len(source) > MAX_SOURCE:
            raise _too_much(f"has more than {MAX_SOURCE} characters")
        tree = _Metering().visit(self.parse(source))
        tree.set_environment(self)
        return self.from_string(tree).render(self._data)

    def _metered(self, name: str, function: Callable) -> Callable:
        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            # an iterator could not be measured
            args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
            operands = [a for a in args if not isinstance(a, _PASSED)] + [*kwargs.values()]
            return self.meter.operate(name, operands, function, *args, **kwargs)

        return metered

    def call(__self, __context, __obj, *args, **kwargs):  # noqa: N805 - as in the base class
        """Any call in a template; a macro's own steps are counted."""
        called = super().call
        if isinstance(__obj, runtime.Macro):
            result = called(__context, __obj, *args, **kwargs)
            __self.meter.add(shallow_size(result))
            return result
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        operands = [getattr(method, "__self__", None), *args, *kwargs.values()]
        name = getattr(method, "__name__", "")
        return __self.meter.operate(name, operands, called, __context, __obj, *args, **kwargs)

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        """One of the `intercepted_binops`."""
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str | bytes):
            text = left if isinstance(left, str) else left.decode("latin-1")
            sizes = [0, self.meter.size(right)]
            self.meter.check(_formatted_size(_PERCENT.findall(text), text, sizes))
        elif operator == "**" and numbers:
            self._check_integer(left.bit_length() * abs(right))
        elif operator == "*" and numbers:
            self._check_integer(left.bit_length() + right.bit_length())
        elif operator == "*":
            # a text or list, as often as the other says
            first, second = (v if isinstance(v, int) else shallow_size(v) for v in (left, right))
            self.meter.check(first * second)
        result = super().call_binop(context, operator, left, right)
        self.meter.add(shallow_size(result))
        return result

    def _check_integer(self, bits: int) -> None:
        if bits > _MAX_INTEGER_BITS:
            raise _too_much("computes with integers of thousands of digits")

    def joined(self, parts: Iterator[str]) -> str:
        """A text of parts that are made one by one."""

        def counted():
            for part in parts:
                self.meter.add(len(part))
                yield part

        return "".join(counted())

    def _checked(self, value: Any) -> Any:
        """A value that is to be compared or hashed."""
        self.meter.size(value)
        return value

    def _sliced(self, value: Any) -> Any:
        self.meter.add(shallow_size(value))
        return value

    @pass_eval_context
    def _concatenated(self, context, values: list[Any]) -> str:
        size = sum(map(self.meter.size, values))
        self.meter.check(size)
        self.meter.add(size)
        return (runtime.markup_join if context.autoescape else runtime.str_join)(values)


_PASSED = (Environment, runtime.Context, nodes.EvalContext)
# names of filters that no template can have
_TICK, _CHECKED, _CONCATENATED, _SLICED = " tick", " checked", " concatenated", " sliced"


@pass_context  # and so nothing of it can be done while compiling
def _output(context, value: Any) -> Any:
    meter = context.environment.meter
    meter.add(meter.size(value))
    return value


class _Metering(NodeTransformer):
    """Puts filters that count into a parsed template."""

    def visit_For(self, node):  # noqa: N802 - the name that the visitor looks for
        """What has a body that runs again and again; its text counts each time."""
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        count = nodes.Const(_UNIT + text, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(_filter(count, _TICK), lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_For  # noqa: N815

    def visit_Concat(self, node):  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _CONCATENATED)

    def visit_Compare(self, node):  # noqa: N802
        self.generic_visit(node)
        compared = [node, *node.ops]
        # nothing large is like a constant
        if len(compared) > 2 or not any(isinstance(each.expr, nodes.Const) for each in compared):
            for each in compared:
                each.expr = _checked(each.expr)
        return node

    def visit_Pair(self, node):  # noqa: N802
        self.generic_visit(node)
        node.key = _checked(node.key)
        return node

    def visit_Getitem(self, node):  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filter(node, _SLICED)
        node.arg = _checked(node.arg)
        return node


def _checked(node):
    return node if isinstance(node, nodes.Const) else _filter(node, _CHECKED)


def _filter(node, name: str):
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
