"""Train the demo checkpoint: a tiny StableLM on the Python standard library's source.

    pip install torch transformers tokenizers safetensors
    python tools/train_demo.py --out edge/data/demo

Run once by a maintainer; edge itself never imports PyTorch. The corpus is the
standard library of the interpreter that runs this file, so the same Python
release, seed and token count give the same data in the same order. The weights
are similar, but not bit-identical.

Recipe: byte-level BPE; 50 % of the documents rearranged for fill-in-the-middle,
PSM and SPM equally, split at character level (Stable Code Technical Report,
section 4.4; Bavarian et al. 2022, arXiv:2207.14255). A document is a run of
whole lines of one file that fits the context, so that prefix, suffix and middle
are always in one context. The first stage has long documents; two more have
shorter ones, with more boundaries between prefix, middle and suffix.
Matrices are trained with Muon, the rest with AdamW.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import StableLmConfig, StableLmForCausalLM

VOCAB_SIZE = 4096
CONTEXT = 1024
FIM_RATE = 0.5
HELD_OUT_PERCENT = 3


@dataclass(frozen=True)
class Stage:
    """One schedule: tokens, document lengths in characters, share of the full learning rate.

    Lengths are drawn uniformly, or uniformly in their logarithm.
    """

    tokens: int
    shortest: int
    longest: int
    log_uniform: bool
    peak: float
    hold: float

    def length(self, rng: random.Random) -> int:
        """Characters of the next document."""
        if not self.log_uniform:
            return rng.randint(self.shortest, self.longest)
        return round(math.exp(rng.uniform(math.log(self.shortest), math.log(self.longest))))


STAGES = (
    Stage(18_000_000, 600, 3200, log_uniform=False, peak=1.0, hold=0.5),
    Stage(10_000_000, 40, 1200, log_uniform=True, peak=0.5, hold=0.2),
    Stage(6_500_000, 15, 300, log_uniform=True, peak=0.7, hold=0.5),
)

FIRST_TOKENS = ["<|endoftext|>", "<|padding|>"]
# StarCoder's special tokens, the long-context one of Stable Code, and ChatML's.
LAST_TOKENS = [
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
    "<repo_continuation>",
    "<|im_start|>",
    "<|im_end|>",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Published spelling of the family's configs (rope keys at the top level).
CONFIG = {
    "architectures": ["StableLmForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": CONTEXT,
    "model_type": "stablelm",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.25,
    "qk_layernorm": False,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_parallel_residual": False,
    "use_qkv_bias": False,
    "vocab_size": VOCAB_SIZE,
}


# ---------------------------------------------------------------------------
# Corpus


def standard_library() -> dict[str, str]:
    """Relative path -> source of the running interpreter's library, without generated tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = ("site-packages/", "encodings/", "pydoc_data/", "lib2to3/tests/data/", "config-")
    files = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(left_out) or path.stat().st_size > 200_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # deliberately broken test files
        if text.isascii() and text.strip():
            files[name] = text
    return files


def is_held_out(name: str) -> bool:
    """Split by a hash of the path: stable across machines and releases."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def documents(text: str, stage: Stage, rng: random.Random) -> Iterator[str]:
    """Cut a file into runs of whole lines of random length."""
    piece: list[str] = []
    size, limit = 0, stage.length(rng)
    for line in text.splitlines(keepends=True):
        if size + len(line) > limit and piece:
            yield "".join(piece)
            piece, size, limit = [], 0, stage.length(rng)
        piece.append(line)
        size += len(line)
    if piece:
        yield "".join(piece)


def fill_in_the_middle(document: str, rng: random.Random) -> str:
    """Rearrange one document as PSM or SPM, cut at two uniform character positions."""
    low, high = sorted(rng.randint(0, len(document)) for _ in range(2))
    prefix, middle, suffix = document[:low], document[low:high], document[high:]
    if rng.random() < 0.5:
        return f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>{middle}"
    return f"<fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}{middle}"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting; specials first and last as Stable Code has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(LAST_TOKENS),
        special_tokens=FIRST_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(LAST_TOKENS)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def epoch_tokens(
    files: dict[str, str], tokenizer: Tokenizer, stage: Stage, seed: int
) -> np.ndarray:
    """One pass over the corpus, freshly cut, shuffled and rearranged: uint16 (n,)."""
    rng = random.Random(seed)
    pieces = [piece for name in sorted(files) for piece in documents(files[name], stage, rng)]
    rng.shuffle(pieces)
    texts = [fill_in_the_middle(p, rng) if rng.random() < FIM_RATE else p for p in pieces]
    end = np.array([0], dtype=np.uint16)
    encoded = tokenizer.encode_batch(texts)
    return np.concatenate([part for e in encoded for part in (np.array(e.ids, np.uint16), end)])


# ---------------------------------------------------------------------------
# Training


def batches(
    files: dict[str, str], tokenizer: Tokenizer, stage: Stage, rows: int, seed: int
) -> Iterator[torch.Tensor]:
    """Endless (rows, CONTEXT + 1) int64 batches."""
    span = CONTEXT + 1
    epoch, rest = 0, np.empty(0, np.uint16)
    while True:
        rest = np.concatenate([rest, epoch_tokens(files, tokenizer, stage, seed + epoch)])
        epoch += 1
        while len(rest) >= rows * span:
            yield torch.from_numpy(rest[: rows * span].astype(np.int64)).view(rows, span)
            rest = rest[rows * span :]


def new_model(seed: int) -> StableLmForCausalLM:
    """The network with random weights, residual outputs starting at zero (stabler for Muon)."""
    torch.manual_seed(seed)
    model = StableLmForCausalLM(StableLmConfig(**CONFIG, dtype="float32"))
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def optimizers(model: StableLmForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [
        torch.optim.Muon(
            matrices, lr=0.02, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"
        ),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate_factor(stage: Stage, progress: float) -> float:
    """Warm up over 1 %, hold, then fall linearly to 2 % of the stage's peak."""
    if progress < 0.01:
        return stage.peak * progress / 0.01
    if progress < stage.hold:
        return stage.peak
    return stage.peak * (0.02 + 0.98 * (1 - progress) / (1 - stage.hold))


def loss_of(model: StableLmForCausalLM, batch: torch.Tensor, reduction: str) -> torch.Tensor:
    """Next-token cross entropy in nats, logits in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    flat = logits.float().reshape(-1, VOCAB_SIZE)
    return torch.nn.functional.cross_entropy(flat, batch[:, 1:].reshape(-1), reduction=reduction)


@torch.no_grad()
def held_out_loss(model: StableLmForCausalLM, tokenizer: Tokenizer, files: dict[str, str]) -> dict:
    """Plain left-to-right loss over whole held-out files in windows of the context."""
    end, span = [0], CONTEXT + 1
    ids = [i for name in sorted(files) for i in (*tokenizer.encode(files[name]).ids, *end)]
    windows = torch.tensor(ids[: len(ids) // span * span]).view(-1, span)
    nats = sum(float(loss_of(model, w[None], "sum")) for w in windows)
    scored = windows.shape[0] * CONTEXT
    bytes_per_token = sum(len(t.encode()) for t in files.values()) / len(ids)
    nats_per_token = nats / scored
    return {
        "nats_per_token": nats_per_token,
        "bits_per_byte": nats_per_token / math.log(2) / bytes_per_token,
        "tokens": scored,
    }


def train(
    model: StableLmForCausalLM, stream: Iterator[torch.Tensor], stage: Stage, steps: int
) -> None:
    """One optimiser step per batch."""
    opts = optimizers(model)
    compiled = torch.compile(model)
    bases = [group["lr"] for opt in opts for group in opt.param_groups]
    start, smooth = time.monotonic(), 0.0
    for step in range(steps):
        batch = next(stream)
        factor = learning_rate_factor(stage, (step + 1) / steps)
        groups = [group for opt in opts for group in opt.param_groups]
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * factor
        loss = loss_of(compiled, batch, "mean")
        loss.backward()
        total = float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        smooth = total if step == 0 else 0.95 * smooth + 0.05 * total
        if step % 20 == 0 or step == steps - 1:
            seen = (step + 1) * batch.shape[0] * CONTEXT
            rate = seen / (time.monotonic() - start)
            print(
                f"step {step}/{steps} loss {smooth:.3f} {seen / 1e6:.1f}M tok {rate:.0f} tok/s",
                flush=True,
            )


# ---------------------------------------------------------------------------
# Writing


def write_checkpoint(model: StableLmForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write a Hugging Face directory as the published checkpoints have it, weights in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    write_json(
        out / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": "<|endoftext|>",
            "chat_template": CHATML,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "model_max_length": CONTEXT,
            "pad_token": "<|padding|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<|endoftext|>",
        },
    )


def write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("edge/data/demo"))
    parser.add_argument(
        "--from-stage", type=int, default=0, help="continue --out's weights from this stage"
    )
    parser.add_argument("--rows", type=int, default=8, help="contexts per step (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    files = standard_library()
    held_out = {k: v for k, v in files.items() if is_held_out(k)}
    kept = {k: v for k, v in files.items() if k not in held_out}
    tokenizer = train_tokenizer(list(kept.values()))
    size = sum(map(len, kept.values()))
    print(f"{len(kept)} files, {size / 1e6:.1f} MB; {len(held_out)} held out", flush=True)

    model = new_model(args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    if args.from_stage:
        model.load_state_dict(load_file(args.out / "model.safetensors"))
    seen, started = 0, time.monotonic()
    for number, stage in enumerate(STAGES):
        steps = stage.tokens // (args.rows * CONTEXT)
        seen += steps * args.rows * CONTEXT
        if number < args.from_stage:
            continue
        stream = batches(kept, tokenizer, stage, args.rows, args.seed + 1000 * number)
        train(model, stream, stage, steps)
        write_checkpoint(model, tokenizer, args.out)
    seconds = time.monotonic() - started
    with torch.no_grad():  # scored as stored, in bfloat16
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).float())
    write_checkpoint(model, tokenizer, args.out)
    write_json(
        args.out / "training.json",
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "seed": args.seed,
            "training_files": len(kept),
            "training_bytes": size,
            "tokens_seen": seen,
            "seconds": round(seconds),
            "held_out": held_out_loss(model, tokenizer, held_out),
        },
    )
    print((args.out / "training.json").read_text())


if __name__ == "__main__":
    main()
