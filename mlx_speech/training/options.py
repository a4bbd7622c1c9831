"""How a model is fine-tuned; names and most defaults are those of `mlx_lm.lora`."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..errors import InputError
from ..fields import Range, fit_fields

Count = Annotated[int, Range(1)]
Number = Annotated[int, Range(0)]
#: what is trained beside the projector: low-rank terms in the decoder, nothing, or its last layers
FineTuneType = Literal["lora", "projector", "full"]
#: how many of a decoder's last layers are trained where nothing is said; -1 is all of them
NUM_LAYERS: dict[FineTuneType, int] = {"lora": -1, "projector": 0, "full": 8}
OPTIMIZERS = ("adam", "adamw", "muon", "sgd", "adafactor")


@dataclass
class FineTuneOptions:
    """What is trained, how, and where it goes.

    fine_tune_type: `"lora"` trains the projector and low-rank terms in the decoder, `"projector"`
        the projector alone, as IBM's notebook for Granite Speech does, and `"full"` the projector
        and the decoder's last layers themselves.
    num_layers: of the decoder's last layers, how many; -1 for all. By default all for LoRA, 8 for
        `"full"`.
    lora_keys: ends of the names of the linear layers that get low-rank terms.
    lora_rank, lora_scale, lora_dropout: of those; peft's alpha is scale times rank.
    train_ctc_head: also train the encoder's CTC head, on the letters of the texts.
    optimizer, optimizer_config, learning_rate, lr_schedule: as in `mlx_lm.lora`; a schedule stands
        in the place of the rate, `{"name": ..., "arguments": [...], "warmup": steps}`.
    iters: steps, each with a batch; what is left behind the last update is not made.
    batch_size, grad_accumulation_steps: recordings in a batch, of all ranks together; batches
        before an update.
    max_seq_length: tokens of prompt, audio and text together; a longer recording is bad data.
    val_batches: batches of a validation's loss and words; -1 for all, 0 for no validation.
    steps_per_report, steps_per_eval, save_every: steps between reports, validations and saves.
    grad_checkpoint: compute states of the decoder's layers twice, in less memory; not with dropout
        in them, which would be another the second time.
    clear_cache_threshold: bytes of freed memory that MLX may keep between steps.
    spec_augment: mask times and frequencies of the spectrograms (https://arxiv.org/abs/1904.08779).
    speed_perturbation: also train on recordings at 0.9 and 1.1 times their speed (Ko and others,
        "Audio augmentation for speech recognition", 2015).
    cache_limit: bytes of encoded recordings that may lie on disk.
    skip_bad: leave out rows that cannot be used, rather than train on nothing.
    adapter_path: folder of the result.
    resume: go on where an earlier run in that folder ended.
    seed: of what is random.

    Raises:
        InputError: a value has the wrong type, or makes no sense.
    """

    fine_tune_type: FineTuneType = "lora"
    num_layers: Annotated[int, Range(-1)] | None = None
    lora_keys: list[str] = field(default_factory=lambda: ["self_attn.q_proj", "self_attn.v_proj"])
    lora_rank: Annotated[int, Range(1, 2**12)] = 8
    lora_scale: Annotated[float, Range(0, exclusive=True)] = 20.0
    lora_dropout: Annotated[float, Range(0, 0.99)] = 0.0
    train_ctc_head: bool = False
    optimizer: str = "adam"
    optimizer_config: dict[str, Any] = field(default_factory=dict)
    learning_rate: Annotated[float, Range(0, exclusive=True)] = 1e-5
    lr_schedule: dict[str, Any] | None = None
    iters: Count = 1000
    batch_size: Count = 4
    grad_accumulation_steps: Count = 1
    max_seq_length: Count = 2048
    val_batches: Annotated[int, Range(-1)] = 25
    steps_per_report: Count = 10
    steps_per_eval: Count = 200
    save_every: Count = 100
    grad_checkpoint: bool = False
    clear_cache_threshold: Number = 1_000_000_000
    spec_augment: bool = False
    speed_perturbation: bool = False
    cache_limit: Number = 20_000_000_000
    skip_bad: bool = False
    adapter_path: str = "adapters"
    resume: bool = False
    seed: Number = 0

    def __post_init__(self):
        fit_fields(self)
        if self.optimizer not in OPTIMIZERS:
            raise InputError.must_be("optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        if self.grad_checkpoint and self.lora_dropout:
            message = (
                "{option} computes layers twice, with another dropout: leave out {lora_dropout}"
            )
            raise InputError.about(message, option="grad_checkpoint")

    @property
    def layers(self) -> int:
        """`num_layers`, or its default."""
        return NUM_LAYERS[self.fine_tune_type] if self.num_layers is None else self.num_layers
