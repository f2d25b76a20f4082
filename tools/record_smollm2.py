"""Record what Hugging Face's network computes with the weights of SmolLM2's GGUF file.

    pip install torch transformers
    python tools/record_smollm2.py

Run from the repository's root. The weights are dequantised by the gguf package, the ids those of
transformers' tokenizer of the file, the network in float32 with eager attention.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge.convert.sources.find import smollm2_file  # noqa: E402

CORPUS = ROOT / "edge" / "data" / "corpus"
OUT = ROOT / "tests" / "smollm2_reference.npz"
TOKENS = 512
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
SHAPE |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def network() -> LlamaForCausalLM:
    """SmolLM2-135M-Instruct with the file's dequantised weights."""
    weights = {}
    for tensor in GGUFReader(smollm2_file()).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name.startswith("blk."):
            _, number, stem, _ = tensor.name.split(".")
            if stem in ("attn_q", "attn_k"):  # pairs of neighbours back to halves
                heads = values.reshape(-1, 32, 2, values.shape[-1])
                values = heads.swapaxes(1, 2).reshape(values.shape)
            weights[f"model.layers.{number}.{PARTS[stem]}.weight"] = values
        elif tensor.name == "token_embd.weight":
            weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = values
        else:
            weights["model.norm.weight"] = values
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    config = LlamaConfig(**SHAPE, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=rope)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights)
    return model


def token_ids() -> list[int]:
    """The first ids of the Python files of the corpus."""
    file = smollm2_file()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.py")))
    return tokenizer(text)["input_ids"][:TOKENS]


def logits(ids: list[int]) -> np.ndarray:
    """(L, vocab) in float32."""
    with torch.no_grad():
        return network()(torch.tensor([ids])).logits[0].numpy()


def main() -> None:
    ids = token_ids()
    found = logits(ids).astype(np.float64)
    top = found.max(-1, keepdims=True)
    log_sums = top[:, 0] + np.log(np.exp(found - top).sum(-1))
    nll = (log_sums[:-1] - found[np.arange(len(ids) - 1), ids[1:]]).mean()
    sample = found[::16, ::256].astype(np.float32)
    np.savez_compressed(
        OUT, ids=ids, top_1=found.argmax(-1), sample=sample, largest=abs(found).max(), nll=nll
    )
    print(f"{OUT}: {len(ids)} tokens, {nll:.6f} nats per token, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
