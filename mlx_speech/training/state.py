"""What is kept to go on with training exactly where it was."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import CheckpointError, InputError
from ..files import replacing
from .options import FineTuneOptions
from .ranks import Ranks
from .reports import ValLossReport
from .trainable import Trainable

STATE_FILE = "training_state.safetensors"
_WEIGHTS, _OPTIMIZER, _RANDOM = "weights.", "optimizer.", "random"
#: options that may be others when training goes on: they change no step
_FREE = (
    *("iters", "val_batches", "steps_per_report", "steps_per_eval", "save_every"),
    *("grad_checkpoint", "clear_cache_threshold", "cache_limit", "adapter_path", "resume"),
    "skip_bad",
)

#: what else changes them
_CALLED = {"model": "the model", "rows": "number of rows", "ranks": "number of ranks"}


@dataclass(frozen=True)
class Progress:
    """How far training is: steps that are done, and its validations."""

    step: int = 0
    validations: tuple[ValLossReport, ...] = ()


def save_state(
    folder: Path, trainable: Trainable, optimizer: Any, progress: Progress, rows: int, ranks: Ranks
) -> None:
    """Write it to the folder of the adapter, at once or not at all.

    Args:
        rows: examples that are trained on.
        ranks: that train; the first writes, and what is random is another on each.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    random = ranks.gather(mx.random.state[0].tolist())
    if not ranks.first:
        return
    arrays = {_WEIGHTS + name: array for name, array in trainable.weights().items()}
    arrays |= {_OPTIMIZER + name: array for name, array in tree_flatten(optimizer.state)}
    arrays[_RANDOM] = mx.array(random, mx.uint32)
    told = {
        "step": progress.step,
        "validations": [asdict(report) for report in progress.validations],
        "model": trainable.model.name_or_path,
        "rows": rows,
        "ranks": ranks.size,
        "options": _of_steps(trainable.options),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / STATE_FILE) as temporary, open(temporary, "wb") as file:
        mx.save_safetensors(file, arrays, {"training": json.dumps(told)})


def check_resumable(folder: Path) -> None:
    """Raises `InputError` where a folder has no training to go on with."""
    if not (folder / STATE_FILE).is_file():
        message = "{folder} has no training in it to go on with; leave out {resume}"
        raise InputError.about(message, option="resume", folder=str(folder))


def load_state(
    folder: Path, trainable: Trainable, optimizer: Any, rows: int, ranks: Ranks
) -> Progress:
    """Put it back into what is trained, the optimizer and MLX's random numbers.

    Of several ranks the first reads it, whose folder the others need not have.

    Raises:
        InputError: there is none, or it is of training with other options, data or ranks or another
            model.
        CheckpointError: it is damaged.
        DistributedError: the first rank did not find what it needs.
    """
    arrays: dict[str, mx.array] = {}
    told: dict[str, Any] = {}
    if ranks.first:
        arrays, told = _read_state(folder, trainable, rows, ranks.size)
    told, arrays = ranks.broadcast(told), ranks.arrays(arrays)
    trainable.model.update(tree_unflatten(list(_under(arrays, _WEIGHTS).items())))
    optimizer.init(trainable.trainable_parameters())
    optimizer.state = tree_unflatten(list(_under(arrays, _OPTIMIZER).items()))
    high, low = arrays[_RANDOM].reshape(-1, 2)[ranks.rank].tolist()
    mx.random.seed((high << 32) | low)
    mx.eval(trainable.state, optimizer.state)
    return _progress(told)


def _read_state(
    folder: Path, trainable: Trainable, rows: int, size: int
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Its arrays, and what is told of them; errors are as of `load_state`."""
    path = folder / STATE_FILE
    check_resumable(folder)
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)  # type: ignore[misc]
        told = json.loads(metadata["training"])
        _progress(told)  # or it raises
        before = told["options"] | {name: told[name] for name in ("model", "rows", "ranks")}
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    now = _of_steps(trainable.options)
    now |= {"model": trainable.model.name_or_path, "rows": rows, "ranks": size}
    for name, value in now.items():
        if before.get(name) != value:
            _refuse(name, value, before.get(name))
    weights = _under(arrays, _WEIGHTS)
    expected = trainable.weights()
    shapes = {name: array.shape for name, array in weights.items()}
    if shapes != {name: array.shape for name, array in expected.items()}:
        raise CheckpointError(f"{path} is damaged: its tensors are not those of this training")
    return arrays, told


def _progress(told: dict[str, Any]) -> Progress:
    validations = (ValLossReport(**each) for each in told["validations"])
    return Progress(told["step"], tuple(validations))


def _of_steps(options: FineTuneOptions) -> dict[str, Any]:
    """Options that change steps, as JSON has them."""
    values = asdict(options) | {"num_layers": options.layers}
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in _FREE}))


def _refuse(name: str, value: Any, before: Any) -> None:
    option = name if name in FineTuneOptions.__dataclass_fields__ else ""
    what = "{option}" if option else _CALLED[name]
    message = f"{what} is {{value!r}}, but was {{before!r}} in the training that {{resume}} goes on"
    values = {"value": value, "before": before}
    raise InputError.about(f"{message} with; leave one of them as it is", option=option, **values)


def _under(arrays: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def is_finite(arrays: Sequence[mx.array]) -> bool:
    """Whether all numbers are."""
    return all(mx.stack([mx.isfinite(array).all() for array in arrays]).tolist())
