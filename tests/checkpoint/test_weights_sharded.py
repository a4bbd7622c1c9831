"""What a rank reads of the files of a model whose layers are shared out."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import pytest
from adapters import adapter, train
from conftest import DATA, TINY, TINY_S2T, edit_json, resave
from mlx.utils import tree_flatten
from pytorch_files import save_pytorch_bin
from safetensors_files import store_as
from sharded import Ranks, decoder_adapter, random_model, save
from small_plus import make_plus

from mlx_speech import CheckpointError, InputError, UnsupportedOptionError
from mlx_speech.checkpoint import elements
from mlx_speech.loading import load, load_model, load_shard

COUNTERS = Path("/proc/self/io")


def tensors(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def bytes_of(model) -> int:
    return sum(value.nbytes for value in tensors(model).values())


def assert_same(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert mx.array_equal(found[name], value).item(), name


def assert_parts(folder: Path, size: int = 3, **options) -> None:
    """Each rank has what it would keep of a model that was read as a whole, and a rank that only
    follows has what is in the layers of that."""
    for rank in range(size):
        whole, group = load_model(folder, **options), Ranks(rank, size)
        before = bytes_of(whole.get_decoder().layers[1])
        whole.shard(group)
        assert_same(tensors(load_model(folder, tensor_group=group, **options)), tensors(whole))
        own = tensors(whole.get_decoder())
        assert bytes_of(whole.get_decoder().layers[1]) < 1.2 * before / size
        own = {name: value for name, value in own.items() if name.startswith("layers.")}
        assert_same(tensors(load_shard(folder, group, **options)), own)


def weights_of(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "model.safetensors")))


@pytest.mark.parametrize("family", ["granite", "llama", "jais2"])
def test_families(family, tmp_path):
    assert_parts(save(random_model(family), tmp_path / "model"))


@pytest.mark.parametrize(
    ("bits", "mode", "group"),
    [(4, "affine", 64), (3, "affine", 32), (8, "affine", 32), (4, "nvfp4", 16), (8, "mxfp8", 32)],
)
def test_quantized(bits, mode, group, tmp_path):
    assert_parts(save(random_model("jais2"), tmp_path / "model", bits, mode, group))


def test_16_bits_in_several_files(tmp_path):
    model = random_model("granite").to(mx.bfloat16)
    model.save_pretrained(tmp_path / "model", max_shard_size="150KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    assert_parts(tmp_path / "model", dtype="auto")
    assert load_shard(tmp_path / "model", Ranks(0, 2), dtype="auto").dtype == mx.bfloat16
    assert load_shard(tmp_path / "model", Ranks(0, 2)).dtype == mx.float32  # on a CPU


def test_a_type_that_most_tensors_have(tmp_path):
    """That is the same on all ranks: what is shared out counts as a whole."""
    model = random_model("granite", vocab_size=3000)
    save(model, tmp_path / "model")
    resave(
        tmp_path / "model",
        lambda weights: {
            name: value if "embed" in name else value.astype(mx.bfloat16)
            for name, value in weights.items()
        },
    )
    edit_json(tmp_path / "model" / "config.json", dtype=None)
    for group in (None, Ranks(0, 6)):
        assert load_model(tmp_path / "model", dtype="auto", tensor_group=group).dtype == mx.bfloat16


def test_a_group_of_one(tmp_path):
    """Has the whole model, which can do all that it can do otherwise."""
    folder = save(random_model("granite"), tmp_path / "model")
    alone, whole = load_model(folder, tensor_group=Ranks(0, 1)), load_model(folder)
    assert_same(tensors(alone), tensors(whole))
    whole.shard(Ranks(0, 1))
    assert alone.sharding_group is whole.sharding_group is None
    layers = tensors(load_shard(folder, Ranks(0, 1)))
    assert_same(layers, {n: v for n, v in tensors(whole.model).items() if n in layers})
    assert {name.partition(".")[0] for name in layers} == {"layers"}
    with pytest.raises(InputError, match="tensor_group is 2, but must be a group of ranks"):
        load_model(folder, tensor_group=2)


def test_a_model_without_head(tmp_path):
    """Whose names are shorter."""
    random_model("llama").model.save_pretrained(tmp_path / "model")
    assert_parts(tmp_path / "model")


def test_pytorch(tmp_path):
    folder = save(random_model("jais2"), tmp_path / "model")
    stored = {name: mx.array(value) for name, value in weights_of(folder).items()}
    save_pytorch_bin(folder / "pytorch_model.bin", stored)
    for file in folder.glob("model.safetensors*"):
        file.unlink()
    assert_parts(folder)


def scales(shape: tuple[int, ...]) -> mx.array:
    return 0.5 + mx.random.uniform(shape=shape, key=mx.random.key(4))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F8_E4M3", mx.uint8), ("F8_E5M2", mx.uint8), ("F64", None)]
)
@pytest.mark.parametrize("blocks", [None, [1, 0], [50, 70]])
def test_scaled(kind, dtype, blocks, tmp_path):
    """Also by blocks that no part begins with; of types that MLX does not read, too."""
    folder = save(random_model("granite"), tmp_path / "model")
    weights, types = weights_of(folder), {}
    for name, value in list(weights.items()):
        if "_proj.weight" not in name:
            continue
        types[name] = kind
        if dtype is not None:
            drawn = mx.random.randint(0x20, 0x48, value.shape, key=mx.random.key(value.size))
            weights[name] = drawn.astype(mx.uint8)
        rows, columns = value.shape
        if blocks is None:
            shape: tuple[int, ...] = ()
        elif not blocks[1]:
            shape = (rows,)
        else:
            shape = -(-rows // blocks[0]), -(-columns // blocks[1])
        weights[f"{name}_scale_inv"] = scales(shape)
    store_as(folder / "model.safetensors", weights, types)
    edit_json(folder / "config.json", quantization_config={"weight_block_size": blocks})
    assert_parts(folder)


@pytest.mark.parametrize("layout", ["A", "B", "C"])
def test_layouts_of_granite_speech(layout, tmp_path):
    assert_parts(make_plus(tmp_path / "plus", layout), size=2)


@pytest.mark.parametrize("bits", [None, 4])
def test_adapters(bits, tmp_path):
    """One in the checkpoint, and over it one that has low-rank terms and whole modules."""
    own = ["0.self_attn.q_proj", "1.self_attn.v_proj"]
    folder = save(random_model("speech"), tmp_path / "model", bits)
    decoder_adapter(folder, random_model("speech"), own)
    edit_json(folder / "config.json", has_lora_adapter=True)
    trained, whole = random_model("speech"), ["1", "0.self_attn.o_proj", "0.mlp.up_proj"]
    train(trained, [f"language_model.model.layers.{name}" for name in whole])
    terms = ["0.self_attn.q_proj", "0.mlp.down_proj"]
    over = decoder_adapter(tmp_path / "over", trained, terms, whole, seed=3)
    assert_parts(folder, adapter=over)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """9 MB of layers and 6 of embeddings and head, in 16 bits."""
    sizes = {"hidden_size": 256, "intermediate_size": 1536, "num_hidden_layers": 3}
    model = random_model("llama", vocab_size=6000, **sizes)
    return save(model.to(mx.bfloat16), tmp_path_factory.mktemp("large") / "model")


def bytes_read(call) -> int:
    """What this process reads in files meanwhile."""

    def read() -> int:
        return int(COUNTERS.read_text().split("rchar: ")[1].split()[0])

    before = read()
    call()
    return read() - before


@pytest.mark.skipif(not COUNTERS.exists(), reason="this system does not count")
def test_nothing_else_is_read(large):
    options = {"dtype": "auto"}
    whole = load_model(large, **options)
    layers = sum(bytes_of(layer) for layer in whole.model.layers)
    rest, slack = bytes_of(whole) - layers, 300_000  # headers, JSON; norms are whole on each
    assert layers > 8_000_000
    assert rest > 6_000_000
    for size in (2, 3, 6):
        group = Ranks(size - 1, size)
        follower = bytes_read(lambda group=group: load_shard(large, group, **options))
        assert layers / size <= follower < layers / size + slack
        leads = bytes_read(lambda group=group: load_model(large, tensor_group=group, **options))
        assert rest + layers / size <= leads < rest + layers / size + slack


def test_memory(large):
    """Never more than this rank's part, and the tensor that is being read."""
    whole = load_model(large, dtype="auto")
    layers = sum(bytes_of(layer) for layer in whole.model.layers)
    largest = max(value.nbytes for value in tensors(whole.model.layers[0]).values())
    del whole
    mx.clear_cache()
    for size in (2, 6):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        kept = load_shard(large, Ranks(0, size), dtype="auto")
        assert mx.get_peak_memory() - before < layers / size + largest
        del kept


@pytest.fixture
def unread(monkeypatch):
    """Nothing of a tensor may be read."""

    def refused(*_):
        raise AssertionError("read")

    monkeypatch.setattr(elements.os, "pread", refused)


@pytest.mark.usefixtures("unread")
class TestErrors:
    def refused(self, folder: Path, size: int, **options) -> str:
        with pytest.raises(UnsupportedOptionError) as error:
            load(folder, tensor_group=Ranks(0, size), **options)
        with pytest.raises(UnsupportedOptionError) as other:
            load_shard(folder, Ranks(1, size), **options)
        assert str(other.value) == str(error.value)
        return str(error.value)

    def test_heads(self):
        takes = "tensor parallelism takes 2 processes, not 3"
        assert self.refused(TINY, 3) == f"granite has 2 KV heads: {takes}"

    def test_inner_units(self, tmp_path):
        model = random_model("granite", intermediate_size=100)
        found = self.refused(save(model, tmp_path / "model"), 3)
        assert found.startswith("granite has 100 units in intermediate_size: tensor parallelism")
        assert found.endswith(" takes 2 processes, not 3")

    def test_groups_of_quantized_weights(self, tmp_path):
        model = random_model("jais2", hidden_size=128)
        folder = save(model, tmp_path / "model", 4, "affine", 128)
        what = "jais2 has 3 groups of quantized weights in a row of o_proj"
        takes = "tensor parallelism takes 3 processes, not 2"
        assert self.refused(folder, 2) == f"{what}: {takes}"
        with pytest.raises(UnsupportedOptionError, match=f"{takes}$"):
            load_model(folder).shard(Ranks(0, 2))

    @pytest.mark.parametrize(
        ("folder", "kind"),
        [(TINY_S2T, "speech_to_text"), (DATA / "tiny-turboctc", "granite_speech5_ctc")],
    )
    def test_other_models(self, folder, kind):
        found = self.refused(folder, 2)
        assert found.startswith(f"a {kind} model has no decoder whose layers several processes")
        assert found.endswith("is for models of Granite, Granite Speech, Llama and Jais 2")

    def test_quantizing(self):
        with pytest.raises(UnsupportedOptionError, match="quantize the model first"):
            load_model(TINY, tensor_group=Ranks(0, 2), quantization_config={"bits": 4})


def test_an_adapter_that_has_the_decoder(tmp_path):
    folder = save(random_model("llama"), tmp_path / "model")
    over = adapter(tmp_path / "over", random_model("llama"), (), ["model"])
    load_model(folder, adapter=over)
    for call in (load_shard, lambda *args, **how: load_model(args[0], tensor_group=args[1], **how)):
        with pytest.raises(UnsupportedOptionError, match="a whole decoder in modules_to_save"):
            call(folder, Ranks(0, 2), adapter=over)


def test_tensors_of_another_model(tmp_path):
    folder = save(random_model("granite"), tmp_path / "model")
    edit_json(folder / "config.json", intermediate_size=192)
    with pytest.raises(CheckpointError, match=r"of the wrong shape: .* \(128, 64\) instead of"):
        load_model(folder, tensor_group=Ranks(0, 3))


def test_a_file_that_becomes_shorter(tmp_path, monkeypatch):
    folder = save(random_model("granite"), tmp_path / "model")
    whole = os.pread
    monkeypatch.setattr(elements.os, "pread", lambda *place: whole(*place)[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: became shorter while it was"):
        load_shard(folder, Ranks(0, 2))
