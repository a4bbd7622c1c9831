"""The layouts that Granite Speech NAR is stored in: names of tensors -> those of this model, which
are the ones of IBM's repository from its second revision on."""

import re

import mlx.core as mx

_RENAMES = (
    # IBM's first revision
    (r"^llm\.", "language_model."),
    # transformers
    (r"^model\.out_bpe\.", "encoder.out_bpe."),
    (r"^model\.(encoder|projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^projector\.proj\.", "projector.layer_projector."),
    (r"^projector\.qformer\.queries$", "projector.query"),
    (r"^projector\.qformer\.pos_emb$", "projector.window_positions"),
    (r"^projector\.qformer\.linear\.", "projector.out_linear."),
    (r"\.cross_attn\.", ".cross_attention."),
    # conversions by mlx-audio
    (r"^editor\.", "language_model.model."),
    (r"\.conv\.bn\.", ".conv.batch_norm."),
)


def own_name(name: str) -> str:
    """A name of any of the layouts as this model has it."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def with_separate_kernels(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Depthwise convolutions beside a BatchNorm that is still to be folded into them, under the
    name that says so; mlx-audio has the name that they have afterwards."""
    unfolded = {n.rpartition("batch_norm.")[0] for n in weights if ".conv.batch_norm." in n}
    names = {f"{conv}depth_conv.weight": f"{conv}depth_conv.conv.weight" for conv in unfolded}
    return {names.get(name, name): value for name, value in weights.items()}


def with_plain_norms(weights: dict[str, mx.array], config) -> dict[str, mx.array]:
    """The same tensors, with scales of 1 and shifts of 0 for the projector's norms where there are
    none of a kind: in transformers' layout norms have neither.

    Raises:
        KeyError: the projector's queries are missing.
    """
    projector, dtype = config.projector_config, weights["projector.query"].dtype
    layers = range(projector.num_layers)
    kinds = (
        (projector.encoder_dim, [f"layer_norms.{i}" for i in range(projector.num_encoder_layers)]),
        (projector.hidden_size, [f"qformer.layers.{i}.attn_norm" for i in layers]),
        (projector.hidden_size, [f"qformer.layers.{i}.mlp_norm" for i in layers]),
        (projector.hidden_size, ["out_norm"]),
    )
    for size, norms in kinds:
        plain = {f"projector.{norm}.weight": mx.ones(size, dtype) for norm in norms}
        plain |= {f"projector.{norm}.bias": mx.zeros(size, dtype) for norm in norms}
        if not weights.keys() & plain.keys():
            weights = weights | plain
    return weights
