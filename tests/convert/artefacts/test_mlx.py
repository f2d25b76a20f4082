"""MLX artefacts hold what mlx-lm's own converter would write, bit for bit."""

import json
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.artefacts.mlx import layout
from edge.convert.artefacts.recipes import GROUP_SIZES, RECIPES
from edge.model.config import ModelConfig
from tests.support import conversions
from tests.support.tiny import PLAIN, write_checkpoint

MIXED = [name.removeprefix("mlx-") for name in RECIPES if name.startswith("mlx-mixed")]
# Ten layers: an eighth is one, so that first, last and every third between are told apart; rows of
# down_proj that groups of 128 do not divide.
DEEP = {**PLAIN, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 10}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A checkpoint and its float16 artefact."""
    folder = tmp_path_factory.mktemp("deep")
    source = write_checkpoint(folder / "source", DEEP)
    return source, make(source, folder / "out", "mlx-fp16")


def make(source, out, name, **options):
    return conversions.make(source, out, name, **options)[0].path


def expect_as_mlx_lm(ours, float16, folder, bits, group_size, predicate=None):
    """mlx_lm.convert of the same float16 weights writes the same tensors and settings."""
    from mlx_lm.convert import convert as mlx_lm_convert

    mlx_lm_convert(
        str(float16),
        str(folder),
        quantize=True,
        q_bits=bits,
        q_group_size=group_size,
        dtype="float16",
        quant_predicate=predicate,
    )
    a, b = (mx.load(str(path / "model.safetensors")) for path in (ours, folder))
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        assert np.array_equal(np.array(array), np.array(b[name])), name
    return (json.loads((p / "config.json").read_text())["quantization"] for p in (ours, folder))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
def test_affine_recipes_are_mlx_lms(deep, tmp_path, bits, group_size):
    source, float16 = deep
    ours = make(source, tmp_path / "out", f"mlx-int{bits}", group_size=group_size)
    own, other = expect_as_mlx_lm(ours, float16, tmp_path / "peer", bits, group_size)
    assert own == {"group_size": group_size, "bits": bits, "mode": "affine"}
    assert {key: other[key] for key in own} == own


@pytest.mark.parametrize("name", MIXED)
def test_mixed_recipes_are_mlx_lms(deep, tmp_path, name):
    source, float16 = deep
    ours = make(source, tmp_path / "out", f"mlx-{name}")
    expect_as_mlx_lm(ours, float16, tmp_path / "peer", None, 64, predicate=name)


@pytest.mark.parametrize("layers", [2, 8, 17, 32])
def test_mixed_recipes_choose_mlx_lms_matrices_at_any_depth(layers):
    """mlx-lm's own predicate asked about every matrix."""
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.models.stablelm import Model, ModelArgs

    raw = {**PLAIN, "intermediate_size": 128, "num_hidden_layers": layers}
    network = Model(ModelArgs.from_dict({**raw, "rope_scaling": None}))  # never evaluated
    predicate = mixed_quant_predicate_builder("mixed_3_6", network)
    checkpoint = SimpleNamespace(config=ModelConfig.from_dict(raw))
    module = SimpleNamespace(to_quantized=None)
    for tensor in layout(checkpoint, RECIPES["mlx-mixed_3_6"], exact=False):
        if len(tensor.shape) == 2 and tensor.shape[1] % 64 == 0:
            assert predicate(tensor.stem, module)["bits"] == tensor.bits, tensor.stem
