"""Record Hugging Face's negative log-likelihoods of a held-out text for the perplexity tests.

    pip install torch transformers
    python tools/record_reference_nll.py

Run from the repository's root after training the demo again. Tokenizer and network are those of
transformers, in float32 with eager attention. The text is cut into consecutive windows of 256 ids;
an incomplete last one is dropped, and the first id of each window is not scored.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "edge" / "data" / "demo"
TEXT = ROOT / "tests" / "support" / "held_out.txt"
OUT = ROOT / "tests" / "quality" / "reference_nll.json"
WINDOW = 256


def window_nlls() -> list[float]:
    """Sum of the nats of each window's 255 scored tokens, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    network = AutoModelForCausalLM.from_pretrained(
        DEMO, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    with torch.no_grad():
        logits = network(windows[:, :-1]).logits
    chances = torch.log_softmax(logits, dim=-1).gather(-1, windows[:, 1:, None])
    return [float(-row.double().sum()) for row in chances[..., 0]]


def main() -> None:
    found = window_nlls()
    document = {
        "made_by": "tools/record_reference_nll.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "text": TEXT.relative_to(ROOT).as_posix(),
        "window": WINDOW,
        "nll_of_windows": found,
    }
    OUT.write_text(json.dumps(document, indent=1) + "\n")
    mean = sum(found) / len(found) / (WINDOW - 1)
    print(f"{OUT}: {len(found)} windows, {mean:.6f} nats per token", file=sys.stderr)


if __name__ == "__main__":
    main()
