"""Train the demo checkpoint: a tiny StableLM on code in several languages, holes and dialogues.

    pip install torch tokenizers safetensors
    python tools/demo/corpus.py --packages PACKAGES --out TEXT
    python tools/demo/dialogues.py --out TEXT/dialogues.jsonl
    nice -n 19 python tools/train_demo.py --text TEXT --run RUN --minutes 95 --start edge/data/demo

Run by a maintainer; edge itself never imports PyTorch. RUN gets a checkpoint every ten minutes,
from which the same command continues, and in RUN/export the demo's folder as of then. While the
file RUN/PAUSE exists, training sleeps.

Recipe: byte-level BPE; holes as an editor leaves them, code, dialogues in ChatML and copies
(tools/demo/samples.py has the shares); short contexts first. Matrices are trained with Muon, the
rest with AdamW. `--start` takes an earlier demo's weights; a token that its vocabulary lacks begins
as the mean of the tokens that spell it. Each worker is one thread: on shared cores they wait for
each other once per step, not once per operation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from demo import network
from demo.samples import Samples
from demo.vocabulary import CHATML, VOCAB_SIZE, train_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import multiprocessing

CONTEXT = 1024
# Share of the time from which contexts have this length.
LENGTHS = ((0.0, 256), (0.6, 512), (0.88, 1024))
STEP_TOKENS = 4096
HOLD = 0.7  # of the time at the full learning rate; then it falls linearly
CHECKPOINT_S, REPORT_STEPS = 400, 40
COUNTS = ("seconds", "steps", "tokens")

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


def started_from(folder: Path, tokenizer: Tokenizer) -> network.Weights:
    """An earlier demo's weights with the rows of its vocabulary moved to this tokenizer's."""
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    earlier = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known, rows = earlier.get_vocab(), []
    for token in range(VOCAB_SIZE):
        name = tokenizer.id_to_token(token)
        spelt = [known[name]] if name in known else earlier.encode(tokenizer.decode([token])).ids
        rows.append(spelt or [0])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.stack([weights[name][row].mean(0) for row in rows])
    return weights


def optimizers(weights: network.Weights) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head and norms."""
    is_matrix = {k: v.ndim == 2 and ".layers." in k for k, v in weights.items()}
    matrices = [v for k, v in weights.items() if is_matrix[k]]
    rest = [v for k, v in weights.items() if not is_matrix[k]]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(progress: float, steps: int, peak: float) -> float:
    """Warm up over 30 steps, hold, then fall linearly to 2 %."""
    fall = 1 if progress < HOLD else 0.02 + 0.98 * max(0, 1 - progress) / (1 - HOLD)
    return peak * fall * min(1, (steps + 1) / 30)


def batch(samples: Samples, rows: int, length: int) -> list[torch.Tensor]:
    """Ids, targets, weights (rows, length) and the added mask (rows, 1, length, length)."""
    drawn = zip(*(samples.row(length) for _ in range(rows)), strict=True)
    ids, weights, owner = (torch.from_numpy(np.stack(part)) for part in drawn)
    seen = (owner[:, :, None] == owner[:, None]) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(seen.shape, dtype=network.BF16).masked_fill(~seen, -math.inf)
    return [ids[:, :-1], ids[:, 1:], weights, mask[:, None]]


def loss_of(weights: network.Weights, data: list[torch.Tensor]) -> torch.Tensor:
    """Weighted mean of the cross entropy in nats."""
    ids, targets, scale, mask = data
    low = {name: value.to(network.BF16) for name, value in weights.items()}
    x = network.hidden_states(low, ids, mask, CONFIG).reshape(-1, CONFIG["hidden_size"])
    scale = scale.flatten() / scale.sum()
    return network.HeadLoss.apply(x, low["lm_head.weight"], targets.flatten(), scale)


def average(weights: network.Weights, workers: int) -> None:
    """Gradients averaged over the workers."""
    flat = torch.cat([v.grad.flatten() for v in weights.values()])
    dist.all_reduce(flat)
    flat /= workers
    parts = flat.split([v.numel() for v in weights.values()])
    for value, part in zip(weights.values(), parts, strict=True):
        value.grad = part.view_as(value)


class Trainer:
    """One worker: the same steps as the others, on samples of its own."""

    def __init__(self, rank: int, args: argparse.Namespace):
        self.rank, self.args = rank, args
        self.tokenizer = Tokenizer.from_file(str(args.run / "tokenizer.json"))
        stored = args.run / "checkpoint.pt"
        state = torch.load(stored) if stored.exists() else {}
        weights = state.get("weights") or self._first_weights()
        self.weights = {name: value.requires_grad_() for name, value in weights.items()}
        self.optimizers = optimizers(self.weights)
        self.rates = [group["lr"] for group in self._groups()]
        for optimizer, kept in zip(self.optimizers, state.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(kept)
        self.seconds, self.steps, self.tokens = (state.get(key, 0) for key in COUNTS)
        self.samples = Samples.read(args.text, self.tokenizer, seed=1000 * self.steps + rank)

    def run(self) -> None:
        """Steps until the time is over, with a checkpoint every CHECKPOINT_S seconds."""
        saved, progress = self.seconds, 0.0
        losses: list[float] = []
        while progress < 1:
            begun = time.monotonic()
            progress = self._agreed_progress()
            losses.append(self._step(progress))
            self.seconds += time.monotonic() - begun
            while (self.args.run / "PAUSE").exists():
                time.sleep(2)
            if self.rank == 0 and self.steps % REPORT_STEPS == 0:
                mean, losses = statistics.fmean(losses), []
                now = time.strftime("%H:%M:%S")
                print(f"{now} step {self.steps}, {progress:.1%}, loss {mean:.3f}", flush=True)
            if self.rank == 0 and (progress >= 1 or self.seconds - saved > CHECKPOINT_S):
                saved = self.seconds
                self._save()

    def _first_weights(self) -> network.Weights:
        if self.args.start is None:
            return network.new_weights(CONFIG, seed=0)
        return started_from(self.args.start, self.tokenizer)

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _agreed_progress(self) -> float:
        """The share of the time that is over, by the first worker's clock."""
        progress = torch.tensor(self.seconds / (60 * self.args.minutes))
        dist.broadcast(progress, 0)
        return float(progress)

    def _step(self, progress: float) -> float:
        factor = learning_rate_factor(progress, self.steps, self.args.peak)
        for group, rate in zip(self._groups(), self.rates, strict=True):
            group["lr"] = rate * factor
        length = next(n for share, n in reversed(LENGTHS) if share <= min(progress, 1))
        rows = max(1, STEP_TOKENS // self.args.workers // length)
        loss = loss_of(self.weights, batch(self.samples, rows, length))
        loss.backward()
        average(self.weights, self.args.workers)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.tokens += rows * length * self.args.workers
        return float(loss.detach())

    def _save(self) -> None:
        """What a later start continues from, and the demo's folder as of now."""
        run, counts = self.args.run, {key: getattr(self, key) for key in COUNTS}
        values = {name: value.detach() for name, value in self.weights.items()}
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({**counts, "weights": values, "optimizers": states}, run / "checkpoint.new")
        (run / "checkpoint.new").replace(run / "checkpoint.pt")
        write_checkpoint(values, self.tokenizer, run / "export")
        figures = {"torch": torch.__version__, **counts, "seconds": round(self.seconds)}
        write_json(run / "export" / "training.json", figures)


def work(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    meeting = args.run.resolve() / f"meeting-{os.getppid()}"
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=args.workers)
    Trainer(rank, args).run()
    dist.destroy_process_group()


def write_checkpoint(weights: network.Weights, tokenizer: Tokenizer, out: Path) -> None:
    """Write a Hugging Face directory as the published checkpoints have it, weights in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}
    save_file(tensors, out / "new.safetensors", metadata={"format": "pt"})
    (out / "new.safetensors").replace(out / "model.safetensors")
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    content = json.loads(tokenizer.to_str())
    compact = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    (out / "tokenizer.json").write_text(compact, encoding="utf-8")
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
    parser.add_argument("--text", type=Path, required=True, help="what demo/corpus.py wrote")
    parser.add_argument("--run", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--start", type=Path, help="an earlier demo to begin with")
    parser.add_argument("--minutes", type=float, default=95, help="of training, pauses left out")
    parser.add_argument("--peak", type=float, default=0.5, help="share of the learning rates")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    if not (args.run / "tokenizer.json").exists():
        train_tokenizer(args.text).save(str(args.run / "tokenizer.json"))
    multiprocessing.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
