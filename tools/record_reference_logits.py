"""Record Hugging Face's logits for the tests' tiny checkpoints.

    pip install torch transformers safetensors numpy
    python tools/record_reference_logits.py

Run from the repository's root after changing `tests/support/tiny.py`. The weights
are not stored: the tests generate them from the same seed.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge.model.config import ModelConfig  # noqa: E402
from tests.support.tiny import ALL_CONFIGS, random_tensors, token_ids  # noqa: E402

NETWORK_OF = {
    "stablelm": (StableLmConfig, StableLmForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def reference_logits(raw: dict) -> np.ndarray:
    """Logits (L, vocab) of transformers' network in float32 with eager attention."""
    config = ModelConfig.from_dict(raw)
    # A copy: transformers writes into nested objects.
    fields = deepcopy({k: v for k, v in raw.items() if k != "model_type"})
    network_config, network_class = NETWORK_OF[raw["model_type"]]
    network = network_class(network_config(**fields, attn_implementation="eager")).eval()
    tensors = {k: torch.from_numpy(v) for k, v in random_tensors(config).items()}
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    network.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return network(torch.from_numpy(token_ids(config))).logits[0].numpy()


def main() -> None:
    out = ROOT / "tests" / "model" / "reference_logits.npz"
    found = {name: reference_logits(raw) for name, raw in ALL_CONFIGS.items()}
    np.savez_compressed(out, **found)
    print(f"{out}: {len(found)} configurations, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
