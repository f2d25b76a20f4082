"""Fixed copies of GGUF files: in llama.cpp, and byte by byte."""

import gguf
import numpy as np
import pytest

from edge.convert.artefacts.manifest import GGUF_KEY, Corrections, read_manifest
from edge.convert.artefacts.recipes import MENDED
from edge.convert.fix_gguf import ROPE_BASE_KEY, fix_gguf
from edge.convert.sources.gguf import open_gguf
from edge.convert.verify import find_origin, verify
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.llama_cpp.session import LlamaSession, library
from tests.support.conversions import llama_logits
from tests.support.foreign_gguf import rewritten, write_tiny

THETA = 1_000_000.0
SPECIAL = [
    f"tokenizer.ggml.{name}_token_id"
    for name in ("fim_pre", "fim_suf", "fim_mid", "eot", "fim_pad", "fim_rep")
]


def fix(path, out, base=THETA, context=None, force=False):
    """The fixed file, and what the user was told."""
    told = []
    corrections = Corrections(rope_theta=base, context=context)
    made = fix_gguf(str(path), out, corrections, force, lambda *_: None, told.append)
    return made.path, told


@pytest.fixture(scope="module")
def ours(demo_out):
    return demo_out / "gguf-q6_k.gguf"


@pytest.fixture(scope="module")
def foreign(ours, tmp_path_factory):
    """The same model as llama.cpp's own converter leaves Stable Code."""
    path = tmp_path_factory.mktemp("foreign") / "stable-code-3b.gguf"
    return rewritten(ours, path, dict.fromkeys((ROPE_BASE_KEY, *SPECIAL)))


@pytest.fixture(scope="module")
def fixed(foreign):
    return fix(foreign, foreign.parent / "out", base=None)


def tensors(path):
    data = path.read_bytes()
    return {
        t.name: (t.kind, t.shape, data[t.begin : t.begin + t.data_bytes])
        for t in read_gguf(path).tensors
    }


def test_llama_cpp_computes_the_right_logits_and_finds_the_special_tokens(ours, foreign, fixed):
    path, told = fixed
    assert ["--context 16384" in sentence for sentence in told] == [True]
    truth = llama_logits(ours)
    assert np.abs(llama_logits(foreign) - truth).max() > 0.1
    assert np.abs(llama_logits(path) - truth).max() <= 1e-5
    assert open_gguf(path).config.rope_theta == THETA
    session, lib = LlamaSession(path, 64, 1), library()
    vocab = lib.llama_model_get_vocab(session._model)
    found = (lib.llama_vocab_fim_pre, lib.llama_vocab_fim_suf, lib.llama_vocab_fim_mid)
    texts = [lib.llama_vocab_get_text(vocab, find(vocab)) for find in found]
    session.close()
    assert texts == [b"<fim_prefix>", b"<fim_suffix>", b"<fim_middle>"]


def test_only_missing_keys_are_added_and_no_tensor_changes(ours, foreign, fixed):
    path, _ = fixed
    assert tensors(path) == tensors(foreign)
    old, new = (gguf.GGUFReader(str(file)) for file in (foreign, path))
    for name, field in old.fields.items():
        if not name.startswith("GGUF.") and name != GGUF_KEY:
            assert new.fields[name].types == field.types
            assert new.fields[name].contents() == field.contents()
    added = {n: new.fields[n].contents() for n in new.fields.keys() - old.fields.keys()}
    expected = read_gguf(ours).keys
    assert added == {key: expected[key] for key in (ROPE_BASE_KEY, *SPECIAL)}
    assert new.fields[ROPE_BASE_KEY].types == [gguf.GGUFValueType.FLOAT32]
    manifest = read_manifest(path)
    assert (manifest.artefact, manifest.source) == (MENDED.name, foreign.name)
    assert manifest.corrections.rope_theta == THETA
    found = verify(path, find_origin(path, str(foreign)), lambda _: None)
    assert (found.problems, found.compared_tensors) == ((), 48)


def test_a_wrong_base_and_context_are_replaced(ours, tmp_path):
    wrong = rewritten(ours, tmp_path / "wrong.gguf", {ROPE_BASE_KEY: 10000.0})
    path, told = fix(wrong, tmp_path / "out", context=16384)
    old, new = read_gguf(wrong).keys, read_gguf(path).keys
    changed = {ROPE_BASE_KEY: THETA, "stablelm.context_length": 16384, GGUF_KEY: new[GGUF_KEY]}
    assert told == []
    assert new == {**old, **changed}
    assert tensors(path) == tensors(wrong)


@pytest.mark.parametrize("version", [2, 3])
def test_any_alignment_and_version(tmp_path, version):
    path = rewritten(
        write_tiny(tmp_path / "a.gguf"), tmp_path / "x.gguf", {"general.alignment": 256}
    )
    data = bytearray(path.read_bytes())
    data[4] = version
    path.write_bytes(data)
    made, _ = fix(path, tmp_path / "out")
    file = read_gguf(made)
    assert (file.keys["general.alignment"], file.tensors[0].begin % 256) == (256, 0)
    assert tensors(made) == tensors(path)
    # Only tokens that the vocabulary has are given ids.
    added = file.keys.keys() - read_gguf(path).keys.keys()
    assert added == {ROPE_BASE_KEY, *SPECIAL[:4], GGUF_KEY}


def test_files_that_cannot_be_fixed(fixed, tmp_path):
    foreign_kind = write_tiny(tmp_path / "a.gguf", {"general.architecture": "llama"})
    no_base, out = write_tiny(tmp_path / "b.gguf"), tmp_path / "out"
    for path, folder, base, words in (
        (foreign_kind, out, None, "'llama' model"),
        (no_base, out, None, "--rope-theta"),
        (fixed[0], out, THETA, "nothing to fix"),
        (tmp_path, out, THETA, "is not a file"),
        (fixed[0], fixed[0].parent, THETA, "choose another --out"),
    ):
        with pytest.raises(EdgeError, match=words):
            fix(path, folder, base=base, force=True)
    assert not list(out.glob("*"))
