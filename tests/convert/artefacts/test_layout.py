"""MLX artefacts hold what mlx-lm's own converter would write, bit for bit."""

import json

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.artefacts.layout import layout, quantization_config
from edge.convert.artefacts.recipes import GROUP_SIZES, MIXED_BITS, RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import Options
from edge.errors import EdgeError
from edge.model.config import read_config
from edge.model.load import load_model
from tests.support.tiny import CONFIGS, PLAIN, token_ids, write_checkpoint

BITS = (8, 6, 5, 4, 3, 2)
# Ten layers: an eighth is one, so that first, last and every third between are told apart.
DEEP = {**PLAIN, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 10}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Ten layers whose down_proj has rows that groups of 128 do not divide, and their float."""
    folder = tmp_path_factory.mktemp("deep")
    source = write_checkpoint(folder / "source", DEEP)
    return source, make(source, folder / "out", "mlx-fp16")


def make(source, out, name, **options):
    recipes = [RECIPES[name]]
    checkpoint = open_checkpoint(str(source))
    return convert(checkpoint, recipes, out, lambda *_: None, Options(**options))[0].path


def peer(source, target, bits, group_size, predicate=None):
    """mlx_lm.convert of the same float16 weights."""
    from mlx_lm.convert import convert as mlx_lm_convert

    mlx_lm_convert(
        str(source),
        str(target),
        quantize=True,
        q_bits=bits,
        q_group_size=group_size,
        dtype="float16",
        quant_predicate=predicate,
    )
    return target


def expect_equal(ours, theirs):
    a, b = (mx.load(str(path / "model.safetensors")) for path in (ours, theirs))
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        assert np.array_equal(np.array(array), np.array(b[name])), name


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_every_bits_and_group_size_is_mlx_lms(deep, tmp_path, bits, group_size):
    source, float16 = deep
    ours = make(source, tmp_path / "out", f"mlx-int{bits}", group_size=group_size)
    theirs = peer(float16, tmp_path / "peer", bits, group_size)
    expect_equal(ours, theirs)
    own, other = (json.loads((p / "config.json").read_text()) for p in (ours, theirs))
    assert own["quantization"] == {"group_size": group_size, "bits": bits, "mode": "affine"}
    for key in ("group_size", "bits", "mode"):
        assert other["quantization"][key] == own["quantization"][key]


@pytest.mark.parametrize("name", MIXED_BITS)
def test_mixed_recipes_are_mlx_lms(deep, tmp_path, name):
    source, float16 = deep
    ours = make(source, tmp_path / "out", f"mlx-{name}")
    theirs = peer(float16, tmp_path / "peer", None, 64, predicate=name)
    expect_equal(ours, theirs)


@pytest.mark.parametrize("layers", [2, 8, 17, 32])
def test_mixed_recipes_choose_mlx_lms_matrices_at_any_depth(layers):
    """mlx-lm's own predicate asked about every matrix."""
    from mlx_lm.convert import mixed_quant_predicate_builder

    model = load_model_of(layers)
    predicate = mixed_quant_predicate_builder("mixed_3_6", model)
    checkpoint = CheckpointOf(layers)
    for form in layout(checkpoint, RECIPES["mlx-mixed_3_6"], exact=False):
        if len(form.shape) == 2 and form.shape[1] % 64 == 0:
            assert predicate(form.stem, Quantisable())["bits"] == form.bits, form.stem


class Quantisable:
    """What mlx-lm asks of a module."""

    def to_quantized(self):
        raise NotImplementedError


class CheckpointOf:
    """A config of so many layers is all that a layout needs."""

    def __init__(self, layers):
        from edge.model.config import ModelConfig

        raw = {**PLAIN, "intermediate_size": 128, "num_hidden_layers": layers}
        self.config = ModelConfig.from_dict(raw)


def load_model_of(layers):
    """mlx-lm's network, never evaluated."""
    from mlx_lm.models.stablelm import Model, ModelArgs

    raw = {**PLAIN, "num_hidden_layers": layers}
    return Model(ModelArgs.from_dict({**raw, "rope_scaling": None}))


@pytest.mark.parametrize("name", ["mlx-int4", "mlx-mixed_2_6", "mlx-int3"])
def test_they_run_in_our_network_and_in_mlx_lms(deep, tmp_path, name):
    from mlx_lm import load

    path = make(deep[0], tmp_path / "out", name)
    ids = mx.array(token_ids(read_config(path / "config.json")))
    theirs, _ = load(str(path))
    theirs.set_dtype(mx.float32)
    ours = load_model(path, mx.float32)
    assert mx.abs(ours(ids) - theirs(ids)).max().item() < 1e-3


def test_a_matrix_of_another_setting_is_named_in_the_config(tmp_path):
    source = write_checkpoint(tmp_path / "tiny", CONFIGS["plain"])
    forms = layout(open_checkpoint(str(source)), RECIPES["mlx-mixed_2_6"], exact=False)
    found = quantization_config(forms)
    assert (found["bits"], found["group_size"]) == (2, 64)
    assert found["lm_head"] == {"bits": 6, "group_size": 64, "mode": "affine"}
    assert "model.layers.0.mlp.down_proj" not in found  # 96 columns: left in float
    assert (
        quantization_config(layout(open_checkpoint(str(source)), RECIPES["mlx-fp16"], False))
        is None
    )


def test_a_group_size_for_nothing_is_refused(deep, tmp_path):
    with pytest.raises(EdgeError, match="--group-size bears on none"):
        make(deep[0], tmp_path / "out", "mlx-fp16", group_size=32)
