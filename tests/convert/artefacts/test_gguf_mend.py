"""Mended files in the real llama.cpp, byte by byte, and in the gguf package."""

import hashlib

import gguf
import numpy as np
import pytest

from edge.convert.artefacts.gguf_mend import mend
from edge.convert.mend import mend_gguf
from edge.convert.sources.gguf import has_rope_base, open_gguf
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.llama_cpp.session import LlamaSession, library
from tests.support.foreign_gguf import KEYS, ROPE_BASE, rewritten, write_tiny

THETA = 1_000_000.0
IDS = list(range(100, 160))
SPECIAL = {name: None for name in ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "eot")}


@pytest.fixture(scope="module")
def ours(demo_out):
    return demo_out / "gguf-q6_k.gguf"


@pytest.fixture(scope="module")
def foreign(ours, tmp_path_factory):
    """The same model as llama.cpp's own converter leaves it."""
    path = tmp_path_factory.mktemp("foreign") / "foreign.gguf"
    return rewritten(ours, path, rope_base=None, **SPECIAL)


@pytest.fixture(scope="module")
def mended(foreign):
    path = foreign.with_name("mended.gguf")
    mend(foreign, path, THETA, lambda _: None)
    return path


def logits(path):
    session = LlamaSession(path, 64, 1, "f32", flash_attention=False, gpu_layers=0)
    try:
        return session.all_logits(IDS)
    finally:
        session.close()


def digests(path):
    data, file = path.read_bytes(), read_gguf(path)
    return {
        t.name: (t.kind, t.shape, hashlib.sha256(data[t.begin :][: t.data_bytes]).hexdigest())
        for t in file.tensors
    }


def test_mending_makes_llama_cpp_compute_the_truth(ours, foreign, mended):
    truth = logits(ours)
    assert np.abs(logits(foreign) - truth).max() > 0.1
    assert np.abs(logits(mended) - truth).max() <= 1e-5


def test_the_tensors_are_the_same_bytes(foreign, mended):
    assert digests(mended) == digests(foreign)
    old, new = read_gguf(foreign), read_gguf(mended)
    assert mended.read_bytes()[new.data_begin :] == foreign.read_bytes()[old.data_begin :]


def test_every_key_stays_and_only_the_missing_are_added(ours, foreign, mended):
    assert not has_rope_base(foreign)
    old, new = (gguf.GGUFReader(str(path)) for path in (foreign, mended))
    for name, field in old.fields.items():
        if not name.startswith("GGUF."):
            assert new.fields[name].types == field.types
            assert new.fields[name].contents() == field.contents()
    added = {n: new.fields[n].contents() for n in new.fields.keys() - old.fields.keys()}
    expected = read_gguf(ours).keys
    assert added == {KEYS[name]: expected[KEYS[name]] for name in ("rope_base", *SPECIAL)}
    assert new.fields[ROPE_BASE].types == [gguf.GGUFValueType.FLOAT32]


def test_it_is_a_source_again(mended):
    assert open_gguf(mended).config.rope_theta == THETA


def test_llama_cpp_finds_the_middle(mended):
    session = LlamaSession(mended, 64, 1)
    try:
        lib = library()
        vocab = lib.llama_model_get_vocab(session._model)
        names = [b"<fim_prefix>", b"<fim_suffix>", b"<fim_middle>"]
        ids = [f(vocab) for f in (lib.llama_vocab_fim_pre, lib.llama_vocab_fim_suf)]
        ids.append(lib.llama_vocab_fim_mid(vocab))
        assert [lib.llama_vocab_get_text(vocab, i) for i in ids] == names
    finally:
        session.close()


def test_a_wrong_base_is_corrected_in_its_place(ours, tmp_path):
    wrong = rewritten(ours, tmp_path / "wrong.gguf", rope_base=10000.0)
    mend(wrong, tmp_path / "right.gguf", THETA, lambda _: None)
    old, new = read_gguf(wrong), read_gguf(tmp_path / "right.gguf")
    assert new.keys == {**old.keys, ROPE_BASE: THETA}
    assert list(new.keys) == list(old.keys)
    assert digests(tmp_path / "right.gguf") == digests(wrong)


def test_an_unusual_alignment_is_kept(ours, foreign, tmp_path):
    path = rewritten(foreign, tmp_path / "x.gguf", alignment=256)
    mend(path, tmp_path / "y.gguf", THETA, lambda _: None)
    file = read_gguf(tmp_path / "y.gguf")
    assert file.alignment == 256
    assert file.data_begin % 256 == 0
    assert digests(tmp_path / "y.gguf") == digests(path)
    assert np.abs(logits(tmp_path / "y.gguf") - logits(ours)).max() <= 1e-5


def test_notes_are_added_or_replaced(foreign, mended, tmp_path):
    notes = {"edge.note": "mended", "general.name": "another"}
    mend(foreign, tmp_path / "x.gguf", THETA, lambda _: None, notes)
    keys = read_gguf(tmp_path / "x.gguf").keys
    assert keys == read_gguf(mended).keys | notes


@pytest.mark.parametrize("version", [2, 3])
def test_the_version_stays(tmp_path, version):
    path = write_tiny(tmp_path / "x.gguf")
    data = bytearray(path.read_bytes())
    data[4] = version
    path.write_bytes(data)
    fractions = []
    mend(path, tmp_path / "y.gguf", THETA, fractions.append)
    assert read_gguf(tmp_path / "y.gguf").version == version
    assert digests(tmp_path / "y.gguf") == digests(path)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_only_names_that_the_vocabulary_has_are_given_ids(tmp_path):
    path = write_tiny(tmp_path / "x.gguf")
    mend(path, tmp_path / "y.gguf", THETA, lambda _: None)
    added = read_gguf(tmp_path / "y.gguf").keys.keys() - read_gguf(path).keys.keys()
    assert added == {KEYS[n] for n in ("rope_base", "fim_pre", "fim_suf", "fim_mid", "eot")}


def test_there_can_be_nothing_to_mend(ours, mended, tmp_path):
    for path in (ours, mended):
        with pytest.raises(EdgeError, match="nothing to mend"):
            mend(path, tmp_path / "x.gguf", THETA, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf"), 1e39])
def test_an_impossible_base_is_a_sentence(foreign, tmp_path, theta):
    with pytest.raises(EdgeError, match="no positive number"):
        mend(foreign, tmp_path / "x.gguf", theta, lambda _: None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"general.architecture": "llama"}, "'llama' model"), ({"split.count": 2}, "one of 2 parts")],
)
def test_other_files_are_not_touched(tmp_path, keys, words):
    path = write_tiny(tmp_path / "x.gguf", keys)
    with pytest.raises(EdgeError, match=words):
        mend(path, tmp_path / "y.gguf", THETA, lambda _: None)
    assert not (tmp_path / "y.gguf").exists()


def test_a_file_is_not_mended_onto_itself(tmp_path):
    path = write_tiny(tmp_path / "gguf-mended.gguf")
    before = path.read_bytes()
    with pytest.raises(EdgeError, match="choose another --out"):
        mend_gguf(str(path), tmp_path, THETA, True, lambda _: None, lambda _: None)
    assert path.read_bytes() == before
