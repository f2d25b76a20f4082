"""A GGUF file's header, checked before llama.cpp opens the file.

llama.cpp reports most faults, but for some it aborts the process.
"""

from pathlib import Path

from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, read_model

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
F16_BYTES = 2


def check_file(path: Path) -> GgufFile:
    """Read the headers of all parts; an EdgeError if one is damaged or would abort llama.cpp."""
    file = read_model(path)
    kind, found = file.keys.get("tokenizer.ggml.model"), file.keys.get("tokenizer.ggml.tokens")
    tokens = {text or i for i, text in enumerate(found)} if isinstance(found, list) else BYTES
    scaling = _key(file, "rope.scaling.type") or ROPE_SCALINGS[0]
    if isinstance(found, list) and len(tokens) < len(found):
        reason = "has one token under two ids"
    elif kind == "llama" and BYTES - tokens:
        reason = "has a SentencePiece tokenizer without tokens for all bytes"
    elif scaling not in ROPE_SCALINGS:
        reason = f"has the unknown rope scaling {scaling!r}"
    else:
        return file
    raise EdgeError(f"{path} {reason}, which llama.cpp cannot run; download it again.")


def needed_bytes(file: GgufFile, context_tokens: int) -> int:
    """Bytes of the weights and of a float16 cache, if the header gives its sizes."""
    heads, kv_heads, layers, hidden, *widths = (
        value if type(value := _key(file, name)) is int else 0
        for name in (
            *("attention.head_count", "attention.head_count_kv", "block_count"),
            *("embedding_length", "attention.key_length", "attention.value_length"),
        )
    )
    position = layers * (kv_heads or heads) * sum(n or hidden // max(1, heads) for n in widths)
    weights_bytes = sum(tensor.data_bytes for tensor in file.tensors)
    return weights_bytes + context_tokens * position * F16_BYTES


def _key(file: GgufFile, name: str) -> object:
    return file.keys.get(f"{file.keys.get('general.architecture')}.{name}")
