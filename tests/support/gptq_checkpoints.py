"""GPTQ checkpoints small enough for tests, opened."""

import json

from edge.convert.sources.gptq import GptqWeights, read_gptq_settings
from edge.formats.safetensors import SafetensorsFile
from edge.model.config import ModelConfig
from tests.support.gptq_packer import STABLELM, Settings, write_gptq

ONE_LAYER = {**STABLELM, "num_hidden_layers": 1}
# Small enough to be made hundreds of times.
SMALL = {**ONE_LAYER, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL["intermediate_size"] = 96
LAYER = "model.layers.0."
Q, K, V, O = (f"{LAYER}self_attn.{letter}_proj.weight" for letter in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))


def open_gptq(path):
    raw = json.loads((path / "config.json").read_text())
    files = [SafetensorsFile(file) for file in sorted(path.glob("*.safetensors"))]
    config = ModelConfig.from_dict(raw)
    return GptqWeights(files, read_gptq_settings(raw, path), config)


def one_layer(path, how=Settings(), **options):  # noqa: B008
    matrices, _ = write_gptq(path, ONE_LAYER, how, **options)
    return matrices, open_gptq(path)
