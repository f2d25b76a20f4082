"""Batches on the demo: every engine against one sequence, and faults that only a batch has."""

from dataclasses import replace

import numpy as np
import pytest

from edge.bench.engines.llama_cpp import LlamaCppBatch
from edge.bench.engines.mlx_batch import MlxBatch
from edge.bench.gate import (
    check_batch,
    check_shapes,
    gate_tokens,
    pieces_bound,
    shapes_error,
)
from edge.bench.worker import check_memory, open_engine
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from edge.profile.profile import Workload
from tests.bench.fakes import job_of

VOCAB = 4096
THREE = Workload(20, 6, 10, batch=3)


def opened(name, artefact, out, workload=THREE, **fields):
    return open_engine(replace(job_of(name, out / artefact, workload, **fields), threads=1), 64)


def checked(engine, workload=THREE, name="mlx", kv_bits=None):
    one, bound = engine.alone(), pieces_bound(name, kv_bits, as_is=False)
    return check_batch(engine, one, workload, VOCAB, check_shapes(one, workload, VOCAB, 64, bound))


@pytest.mark.parametrize(
    ("name", "artefact", "workload", "kv_bits"),
    [
        ("mlx", "mlx-fp16", THREE, None),
        ("mlx", "mlx-int4", Workload(0, 2, batch=5), 8),
        ("mlx-lm", "mlx-fp16", Workload(20, 6, 10, joint=True, batch=3), None),
        ("llama.cpp", "gguf-q5_k_m.gguf", Workload(20, 1, 10, batch=5), None),
        ("llama.cpp", "gguf-f16.gguf", THREE, None),
    ],
)
def test_every_sequence_of_a_batch_has_the_logits_it_has_alone(
    demo_out, name, artefact, workload, kv_bits
):
    engine = opened(name, artefact, demo_out, workload, kv_bits=kv_bits)
    engine.prefill([[1, 2]] * workload.batch)
    facts = engine.facts()
    engine.trim(0)
    found = checked(engine, workload, name, kv_bits)
    assert shapes_error(found) is None
    assert found.worst_error < (1e-3 if artefact == "mlx-fp16" else 0.1)
    assert found.positions >= 3 * workload.batch + 3
    engine.close()
    one = opened(name, artefact, demo_out, Workload(8), kv_bits=kv_bits)
    one.prefill([1, 2])
    assert facts.kv_bytes_per_position == one.facts().kv_bytes_per_position > 0
    assert facts.weight_bytes_per_token == one.facts().weight_bytes_per_token
    assert facts.kv_dtype == one.facts().kv_dtype
    one.close()


@pytest.mark.parametrize(
    ("name", "artefact"),
    [("mlx", "mlx-fp16"), ("mlx-lm", "mlx-fp16"), ("llama.cpp", "gguf-f16.gguf")],
)
def test_a_batch_is_trimmed_and_stamped_once_a_step(demo_out, name, artefact):
    engine = opened(name, artefact, demo_out)
    rows = [[5, 70, 300, 12, 900], [44, 1023, 8, 9, 2], [7, 7, 7, 7, 7]]
    engine.prefill(rows)
    at_once = engine.last_logits()
    assert (at_once.shape, at_once.dtype) == ((3, VOCAB), np.float32)
    engine.trim(2)
    engine.prefill([[1, 2], [3, 4], [5, 6]])
    engine.trim(2)
    stamps = []
    engine.decode([row[2:] for row in rows], lambda: stamps.append(len(stamps)))
    assert stamps == [0, 1, 2]
    after = engine.last_logits()
    shifted = at_once - at_once.mean(axis=1, keepdims=True)
    assert np.abs(after - after.mean(axis=1, keepdims=True) - shifted).max() < 0.05
    engine.close()


def copied(kind):
    class Copied(kind):
        """The first sequence's logits for all."""

        def last_logits(self):
            logits = super().last_logits()
            return np.repeat(logits[:1], len(logits), axis=0)

    return Copied


def swapped(kind):
    class Swapped(kind):
        """Ids of one sequence go to another while decoding."""

        def decode(self, ids, stamp):
            super().decode([*ids[1:], ids[0]], stamp)

    return Swapped


def sharing_a_position(kind):
    class Sharing(kind):
        """All sequences are rotated as at the first one's position."""

        def _extend(self, ids, slots):
            view = self._slots.view

            def shared(slots, positions):
                caches = view(slots, positions)
                for cache in caches if len(slots) > 1 else ():
                    cache.offset = cache.offset[:1]
                return caches

            self._slots.view = shared
            try:
                return super()._extend(ids, slots)
            finally:
                self._slots.view = view

    return Sharing


def reading_the_first_cache(kind):
    class Reading(kind):
        """All sequences decode behind the first one's keys and values."""

        def _extend(self, ids, slots):
            for layer in self._slots._layers if len(slots) > 1 else ():
                for place, array in enumerate(layer):
                    layer[place] = array[[0] * len(slots)]
            return super()._extend(ids, slots)

    return Reading


def of_mlx(kind, out):
    return kind(load_model(out / "mlx-fp16"), 3, None)


def of_llama_cpp(kind, out):
    path = out / "gguf-f16.gguf"
    return kind(LlamaSession(path, 64, 1, 3), path, 1)


@pytest.mark.parametrize(
    ("kind", "fault", "make"),
    [
        (MlxBatch, copied, of_mlx),
        (MlxBatch, swapped, of_mlx),
        (MlxBatch, sharing_a_position, of_mlx),
        (MlxBatch, reading_the_first_cache, of_mlx),
        (LlamaCppBatch, copied, of_llama_cpp),
        (LlamaCppBatch, swapped, of_llama_cpp),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_that_only_a_batch_has_is_found(demo_out, kind, fault, make):
    engine = make(fault(kind), demo_out)
    name = "mlx" if kind is MlxBatch else "llama.cpp"
    found = checked(engine, name=name)
    assert found.share > 1
    words = f"sequence {found.worst_sequence + 1} of the batch has others than alone, at position"
    assert words in shapes_error(found)
    engine.close()


def test_rows_longer_than_a_batch_of_llama_cpp_keep_their_logits(demo_out):
    session = LlamaSession(demo_out / "gguf-f16.gguf", 700, 1, sequences=3)
    rows = [gate_tokens(VOCAB, 690 + row, row) for row in range(3)]
    session.decode_rows(rows)
    found = session.row_logits()
    for row, ids in enumerate(rows):
        session.trim(0)
        session.decode(ids)
        wanted = session.last_logits()
        assert np.std(found[row] - wanted) < 0.1 * np.std(wanted)
    session.close()


def test_memory_is_that_of_all_caches(demo_out):
    one, many = (
        check_memory(job_of("mlx", demo_out / "mlx-fp16", Workload(8, 4, batch=n)), 500)[0]
        for n in (1, 9)
    )
    assert many - one > 8 * 500 * 2 * 4 * 256 * 2
