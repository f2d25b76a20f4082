"""A SentencePiece tokenizer."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

from edge.formats.files import DEMO_PATH

SPACE = "\u2581"
CORPUS = DEMO_PATH.parent / "corpus"


def sentencepiece(*more: str) -> dict:
    """Llama 2's kind with `more` special tokens: spaces and bytes are tokens, BOS comes first."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence(steps)
    ends = [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), *ends]
    backend.decoder = decoders.Sequence(steps)
    added = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *more]
    text = [path.read_text(encoding="utf-8") for path in sorted(CORPUS.rglob("*.py"))]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=added, max_token_length=16)
    backend.train_from_iterator(text[:1], trainer)
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer = json.loads(backend.to_str())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if not token["content"].startswith("<0x")
    ]
    tokenizer["model"]["merges"] = [list(merge) for merge in tokenizer["model"]["merges"]]
    return tokenizer
