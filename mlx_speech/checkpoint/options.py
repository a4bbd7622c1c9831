"""What `from_pretrained` is told about a model beside where it is; names are those of
transformers."""

from dataclasses import dataclass
from typing import Any, Self, TypeVar

import mlx.core as mx

from ..errors import InputError, UnsupportedOptionError
from ..fields import fitted

DTYPES = ("float32", "float16", "bfloat16")  #: floating types that models compute in
_DEVICES = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "gpu", "cuda", "mps", "xpu")
_ATTENTION = ("sdpa", "eager")
_Stored = TypeVar("_Stored", mx.Dtype, None)


def floating_dtype(value: Any) -> mx.Dtype | None:
    """A floating type by itself, MLX's or another library's, or by its name; None if it is none."""
    name = str(value).rpartition(".")[2]
    return getattr(mx, name) if name in DTYPES else None


def is_device(value: Any) -> bool:
    """Whether something names a device, by its name, its number or itself."""
    name = value if isinstance(value, str) else str(getattr(value, "type", value))
    kind = name.rpartition(".")[2].partition(":")[0]
    return kind in _DEVICES or (isinstance(value, int) and not isinstance(value, bool))


@dataclass(frozen=True)
class LoadingOptions:
    """How a model is loaded.

    dtype: floating type to compute in, or its name. `"auto"` is the checkpoint's; by default that
        too, but on a CPU float32, which is where half precision saves no time.
    quantization_config: quantize the model as it is loaded; see
        `mlx_speech.checkpoint.quantization.requested_quantization`.
    adapter: folder of an adapter that is put over the model, and over the checkpoint's own.
    tensor_group: the ranks that share the layers of the decoder, of which each reads its own part
        of the files (tensor parallelism), an `mx.distributed.Group`.
    ignore_mismatched_sizes: have new tensors, drawn at random, where the checkpoint's have another
        shape, such as those of a head for other labels.

    Raises:
        InputError: a value makes no sense.
        UnsupportedOptionError: both `quantization_config` and `tensor_group`.
    """

    dtype: Any = None
    quantization_config: Any = None
    adapter: Any = None
    tensor_group: mx.distributed.Group | None = None
    ignore_mismatched_sizes: bool = False

    def __post_init__(self):
        if str(self.dtype) not in ("None", "auto") and floating_dtype(self.dtype) is None:
            rule = f"one of auto, {', '.join(DTYPES)}"
            raise InputError.must_be("dtype", self.dtype, rule)
        if self.tensor_group is not None and not hasattr(self.tensor_group, "size"):
            rule = "a group of ranks, which mx.distributed.init gives"
            raise InputError.must_be("tensor_group", self.tensor_group, rule)
        if self.quantization_config is not None and self.tensor_group is not None:
            raise UnsupportedOptionError(
                "quantization_config is for whole layers, not for those that tensor_group shares "
                "out: quantize the model first, with mlx_speech.convert"
            )
        fitted("ignore_mismatched_sizes", self.ignore_mismatched_sizes, bool | None)

    def chosen_dtype(self, stored: _Stored) -> mx.Dtype | _Stored:
        """The type to compute in, for a checkpoint in the type `stored`, or in several: None."""
        if self.dtype is None and mx.default_device().type == mx.DeviceType.cpu:
            return mx.float32
        return floating_dtype(self.dtype) or stored

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self:
        """Take them out of the keywords of a `from_pretrained`, with those that ask for what is so
        in any case: a device, of which MLX has all memory in one, and its attention.

        Raises:
            InputError: a value makes no sense.
            UnsupportedOptionError: MLX has no such thing.
        """
        if "torch_dtype" in options:  # the older name
            options.setdefault("dtype", options.pop("torch_dtype"))
        place = options.pop("device_map", None)
        if place is not None and not is_device(place):
            raise UnsupportedOptionError(
                f"device_map {place!r} places parts of a model, but MLX has one memory for all: "
                'leave it out, or give "auto"'
            )
        attention = options.pop("attn_implementation", None)
        if attention not in (None, *_ATTENTION):
            raise UnsupportedOptionError(
                f"attn_implementation {attention!r} is not for MLX, which has a fused attention of "
                f"its own: leave it out, or give {' or '.join(map(repr, _ATTENTION))}"
            )
        names = cls.__dataclass_fields__
        return cls(**{name: options.pop(name) for name in names if name in options})
