"""The demo's tokenizer: byte-level BPE with GPT-2's splitting and Stable Code's special tokens."""

from __future__ import annotations

import random
from pathlib import Path

from demo.samples import LANGUAGES, texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
# Characters of the text that the vocabulary is learnt from.
SAMPLE_CHARACTERS = 30_000_000
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


def train_tokenizer(folder: Path) -> Tokenizer:
    """Specials first and last as Stable Code has them; learnt from files of all languages."""
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
    tokenizer.train_from_iterator(sample(folder), trainer)
    tokenizer.add_special_tokens(LAST_TOKENS)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def sample(folder: Path) -> list[str]:
    """Files of each language up to its share."""
    rng, chosen = random.Random(0), []
    for language, share in LANGUAGES.items():
        found, size = texts(folder / f"{language}.jsonl"), 0.0
        rng.shuffle(found)
        for text in found:
            if size > share * SAMPLE_CHARACTERS:
                break
            chosen.append(text)
            size += len(text)
    return chosen
