"""Convert, and compare what both engines compute with the results."""

import contextlib
import ctypes
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import Options
from edge.convert.verify import verify
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession, library
from edge.llama_cpp.vocabulary import Vocabulary
from edge.model.load import load_model

MADE = ("mlx-fp16", "mlx-int4", "gguf-f16")
IDS = np.random.RandomState(1).randint(0, 160, 40).tolist()


def make(source, out: Path, *names, corrections=None, **options):
    """Artefacts of a source."""
    checkpoint = open_checkpoint(str(source), corrections=corrections)
    recipes = [RECIPES[name] for name in names]
    return convert(checkpoint, recipes, out, lambda *_: None, Options(**options))


def check(artefact: Path, source: Path | str | None):
    """The result of `edge convert SOURCE --verify ARTEFACT`."""
    checkpoint = None if source is None else open_checkpoint(str(source))
    return verify(artefact, checkpoint, lambda _: None)


def refused(path: Path, words: str, names=MADE) -> str:
    """The error's sentence; the output folder stays empty."""
    out = path.parent / "out"
    with pytest.raises(EdgeError, match=words) as caught:
        make(path, out, *names)
    assert not out.exists() or list(out.iterdir()) == []
    assert is_sentence(str(caught.value))
    return str(caught.value)


def is_sentence(text: str) -> bool:
    """One printable line of a readable length."""
    return text.isprintable() and text.endswith(".") and len(text) < 1500


def edge_logits(path: Path, ids: list[int] = IDS) -> np.ndarray:
    return np.array(load_model(path, mx.float32)(mx.array([ids])))[0]


def mlx_lm_logits(path: Path) -> np.ndarray:
    from mlx_lm import load

    model, _ = load(str(path))
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([IDS])))[0]


def exact_session(path: Path, context_tokens: int, threads: int) -> LlamaSession:
    """A session on the CPU with a float32 cache and without flash attention's half precision."""
    lib = library()
    load, init = lib.llama_model_load_from_file, lib.llama_init_from_model

    def load_on_cpu(name, params):
        params.n_gpu_layers = 0
        return load(name, params)

    def init_exact(model, params):
        params.type_k = params.type_v = params.flash_attn_type = 0
        return init(model, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lib, "llama_model_load_from_file", load_on_cpu)
        patch.setattr(lib, "llama_init_from_model", init_exact)
        return LlamaSession(path, context_tokens, threads)


def llama_logits(path: Path, ids=IDS, exact=True) -> np.ndarray:
    opened = exact_session if exact else LlamaSession
    with contextlib.closing(opened(path, max(128, len(ids)), 1)) as session:
        return session.all_logits(ids)


def llama_tokens(session: LlamaSession, text: str) -> list[int]:
    """Text -> ids, special tokens recognised, nothing added."""
    return Vocabulary(session).encode(text, add_special_tokens=False).ids


def widened(source: Path, target: Path) -> Path:
    """A float32 copy by llama.cpp, with which it does not round activations."""
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 0, True, 1
    paths = str(source).encode(), str(target).encode()
    assert lib.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    return target


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """The norm of the difference over that of `wanted`."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
