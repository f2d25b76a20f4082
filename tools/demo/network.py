"""The demo's network for training: StableLM in bfloat16, with Hugging Face's names for weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

BF16 = torch.bfloat16
LOSS_CHUNK = 256
Weights = dict[str, torch.Tensor]


def new_weights(config: dict[str, Any], seed: int) -> Weights:
    """Random float32 weights; outputs of the layers start at zero (stabler for Muon)."""
    torch.manual_seed(seed)
    hidden, inner, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden)}
    norms = ["model.norm"]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        norms += [f"{at}.input_layernorm", f"{at}.post_attention_layernorm"]
        shapes |= {f"{at}.self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
        shapes |= {f"{at}.mlp.{n}_proj": (inner, hidden) for n in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj"] = (hidden, inner)
    zero = ("o_proj", "down_proj")
    scale = config["initializer_range"]
    weights = {
        f"{n}.weight": torch.zeros(s) if n.endswith(zero) else torch.randn(s) * scale
        for n, s in shapes.items()
    }
    for name in norms:
        weights |= {f"{name}.weight": torch.ones(hidden), f"{name}.bias": torch.zeros(hidden)}
    return weights


def hidden_states(
    w: Weights, ids: torch.Tensor, mask: torch.Tensor, config: dict[str, Any]
) -> torch.Tensor:
    """Outputs of the last norm (B, L, hidden) in bfloat16; `mask` is added, (B, 1, L, L)."""
    batch, length = ids.shape
    heads = config["num_attention_heads"]
    cos, sin = rotary(length, config)
    at = "model.layers.{}.{}"
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(config["num_hidden_layers"]):
        h = norm(x, w, at.format(i, "input_layernorm"))
        names = [at.format(i, f"self_attn.{n}_proj.weight") for n in "qkvo"]
        qkv = F.linear(h, torch.cat([w[n] for n in names[:3]]))
        q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), w[names[3]])
        h = norm(x, w, at.format(i, "post_attention_layernorm"))
        gate, up, down = (w[at.format(i, f"mlp.{n}_proj.weight")] for n in ("gate", "up", "down"))
        x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
    return norm(x, w, "model.norm")


def norm(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def rotary(length: int, config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (L, rotated)."""
    size = config["hidden_size"] // config["num_attention_heads"]
    size = int(size * config["partial_rotary_factor"])
    rates = config["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of the first part of each head."""
    size = cos.shape[-1]
    turned = x[..., :size].float()
    half = torch.cat((-turned[..., size // 2 :], turned[..., : size // 2]), -1)
    return torch.cat(((turned * cos + half * sin).to(x.dtype), x[..., size:]), -1)


class HeadLoss(torch.autograd.Function):
    """Weighted cross entropy of the head's logits, a chunk at a time: they never lie in memory."""

    @staticmethod
    def forward(ctx, x, head, targets, weights):  # type: ignore[no-untyped-def]
        """Sum of weight x nats; the gradients are computed on the way."""
        total = torch.zeros(())
        grad_x, grad_head = torch.empty_like(x), torch.zeros(head.shape)
        for start in range(0, len(x), LOSS_CHUNK):
            part = slice(start, start + LOSS_CHUNK)
            logits = (x[part] @ head.T).float()
            scores = logits.log_softmax(-1)
            rows = torch.arange(len(scores))
            total -= (scores[rows, targets[part]] * weights[part]).sum()
            scores.exp_()
            scores[rows, targets[part]] -= 1
            delta = (scores * weights[part, None]).to(x.dtype)
            grad_x[part] = delta @ head
            grad_head += (delta.T @ x[part]).float()
        ctx.save_for_backward(grad_x, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """The kept gradients, scaled."""
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad.to(grad_x.dtype), grad_head * grad, None, None
