"""The GGUF header parser against the gguf package, and with damaged files."""

import os
import random
import struct
import tracemalloc

import gguf
import pytest

from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from tests.support.alarm import alarm
from tests.support.conversions import is_sentence
from tests.support.foreign_gguf import write_tiny
from tests.support.mutations import GGUF_FILE, mutate

CASES = int(os.environ.get("EDGE_FUZZ_CASES", "200"))
SEED = int(os.environ.get("EDGE_FUZZ_SEED", "0"))


def places(file):
    return [(t.name, t.kind, t.begin, t.data_bytes, t.shape) for t in file.tensors]


def places_of_package(reader):
    return [
        (t.name, t.tensor_type.name, t.data_offset, t.n_bytes, tuple(map(int, t.shape[::-1])))
        for t in reader.tensors
    ]


def test_the_parser_agrees_with_the_gguf_package(demo_out, tmp_path):
    path = demo_out / "gguf-q5_k_m.gguf"
    ours, theirs = read_gguf(path), gguf.GGUFReader(str(path))
    keys = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.keys == keys
    assert places(ours) == places_of_package(theirs)
    data = bytearray(path.read_bytes())
    data[4] = 2  # version 2 is the same
    (tmp_path / "x.gguf").write_bytes(data)
    assert read_gguf(tmp_path / "x.gguf").keys == keys


def key(name, code, value):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", code) + value


def tensor(shape, code, offset, name=b"a"):
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}QIQ", *shape, code, offset)


def header(tensors=(), keys=(), version=3):
    counts = struct.pack("<IQQ", version, len(tensors), len(keys))
    head = b"GGUF" + counts + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32)


HUGE = struct.pack("<Q", 1 << 62)
BROKEN = {
    "other": (b"GGML" + bytes(60), "not a GGUF file"),
    "cut": (b"GGUF\3\0", "cut off"),
    "version": (header(version=1), "of version 1"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims .* tensors"),
    "string": (header(keys=[key(b"a", 8, HUGE)]), "wrong length"),
    "array": (header(keys=[key(b"a", 9, struct.pack("<I", 4) + HUGE)]), "items in one array"),
    "nested": (header(keys=[key(b"a", 9, struct.pack("<IQ", 9, 1))]), "value type 9"),
    "same-key": (header(keys=[key(b"a", 7, b"\1")] * 2), "'a' appears twice"),
    "alignment": (header(keys=[key(b"general.alignment", 4, bytes(4))]), "power of two"),
    "same-name": (header([tensor([8], 0, 0), tensor([8], 0, 32)]), "two tensors"),
    "dimensions": (header([tensor([1] * 5, 0, 0)]), "5 dimensions"),
    "block": (header([tensor([33], 8, 0)]), "shape"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "kind": (header([tensor([32], 99, 32)]), "bytes of"),
    "size": (header([tensor([1 << 63] * 4, 0, 0)]), "bytes of"),
    "overlap": (header([tensor([8], 0, 0), tensor([8], 0, 0, b"b")]), "overlaps"),
    "unaligned": (header([tensor([8], 0, 4)]), "not aligned"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_header_is_refused(tmp_path, name):
    content, words = BROKEN[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(EdgeError, match=rf"x\.gguf .*{words}"):
        read_gguf(path)


def test_wrong_lengths_in_a_large_file_take_no_memory(tmp_path):
    path = tmp_path / "x.gguf"
    for value in (key(b"a", 8, struct.pack("<Q", 1 << 31)), HUGE, key(b"a", 9, bytes(4) + HUGE)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + value)
        with path.open("r+b") as file:
            file.truncate(3 << 30)  # a hole
        tracemalloc.start()
        with pytest.raises(EdgeError):
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_an_accepted_header_is_what_the_gguf_package_reads(tmp_path):
    source, path = write_tiny(tmp_path / "tiny.gguf").read_bytes(), tmp_path / "x.gguf"
    accepted = compared = 0
    for number in range(CASES):
        rng = random.Random(f"{SEED} {number}")
        files = {GGUF_FILE: source}
        damage = [mutate(files, rng) for _ in range(rng.choice((1, 1, 2)))]
        path.write_bytes(files[GGUF_FILE])
        try:
            with alarm():
                ours = read_gguf(path)
                accepted += 1
                theirs = gguf.GGUFReader(str(path))
                wanted = {k: f.contents() for k, f in theirs.fields.items() if k[:5] != "GGUF."}
            assert repr(ours.keys) == repr(wanted)  # NaN is not equal to itself
            assert places(ours) == places_of_package(theirs)
            compared += 1
        except EdgeError as error:
            assert is_sentence(str(error))
        except ValueError:  # of the package, for text that is not UTF-8 and for unknown types
            pass
        except BaseException as error:
            error.add_note(f"case {number} of seed {SEED}: {', '.join(damage)}")
            raise
    print(f"{accepted} of {CASES} headers are accepted, {compared} compared")
    assert 0.1 < compared / CASES <= accepted / CASES < 0.9
