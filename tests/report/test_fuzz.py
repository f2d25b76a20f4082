"""Arbitrary files are a fault, a row of the comparison or left out; never an exception."""

import copy
import io
import json
import math
import os
from contextlib import redirect_stdout, suppress
from dataclasses import asdict

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.cli import bench as cli_bench
from edge.cli.main import parser_of
from edge.errors import EdgeError, with_escapes
from edge.profile.check import check
from edge.profile.profile import ProfileError, read
from edge.report.devices import compare_devices, devices_text
from edge.report.page import Source, render_page
from edge.report.plots import Drawn, draw
from edge.report.published import table11_beside
from edge.report.table import csv_table, markdown_section
from tests.support.alarm import alarm
from tests.support.profiles import make_profile

CASES = int(os.environ.get("EDGE_FUZZ_CASES", "120"))
FUZZED = settings(
    max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PROFILE = make_profile(
    artefacts=("mlx-int4", "gguf-q6_k"), generate=4, processes=2, samples=60, quality=True
)
TEXTS = st.sampled_from(
    ["", "VALID", "INVALID", "\ud800", "\x00\x1b[2J\u202e|<b>`", "x" * 5000, "Apple M2", "server"]
) | st.text(max_size=20)
VALUES = st.sampled_from(
    [
        *(None, True, 0, -1, 1, 2**63, 10**400, -0.0, 1e308, 5e-324, math.nan, math.inf),
        *([], {}, [[]], {"": None}),
    ]
)
VALUES |= st.integers() | st.floats() | TEXTS


@st.composite
def spoilt(draw):
    """Bytes of the profile with values replaced, removed or repeated, sometimes cut off."""
    profile = copy.deepcopy(PROFILE)
    parts = st.sampled_from([profile, *profile["rows"]])
    for _ in range(draw(st.integers(1, 2))):
        change(draw, *draw_place(draw, draw(parts)))
    text = bytearray(json.dumps(profile).encode())
    if draw(st.integers(0, 9)) == 0:
        del text[draw(st.integers(0, len(text))) :]
        for _ in range(draw(st.integers(0, 4)) if text else 0):
            text[draw(st.integers(0, len(text) - 1))] = draw(st.integers(0, 255))
    return bytes(text)


def draw_place(draw, data):
    """A container and a key or index in it, at any depth."""
    while True:
        step = draw(st.sampled_from(list(data) if isinstance(data, dict) else range(len(data))))
        inner = data[step]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
            return data, step
        data = inner


def change(draw, target, step):
    kind = draw(st.sampled_from(["replace", "remove", "repeat", *["like it"] * 4]))
    if kind == "remove":
        del target[step]
    elif kind == "repeat" and isinstance(target, list):
        target.insert(step, copy.deepcopy(target[step]))
    elif kind == "like it" and isinstance(target[step], str):
        target[step] = draw(TEXTS)
    elif kind == "like it" and type(target[step]) in (int, float) and abs(target[step]) < 2**63:
        target[step] *= draw(st.sampled_from([-1, 0, 1e-9, 0.5, 1.01, 1000, 1e300]))
    else:
        target[step] = copy.deepcopy(draw(VALUES))


@FUZZED
@given(text=spoilt(), is_drawn=st.integers(0, 49).map(lambda n: n == 0))
def test_spoilt_profiles_are_reported_and_never_raise(tmp_path, text, is_drawn):
    good, fuzz = tmp_path / "good.json", tmp_path / "fuzz.json"
    good.write_text(json.dumps(PROFILE))
    fuzz.write_bytes(text)
    with alarm():
        for fault in check([fuzz], names=("quince",)).faults:
            assert is_clean(str(fault)) and "\n" not in str(fault) and len(str(fault)) < 2000
        assert check([good], names=()).faults == []
        found = compare_devices(tmp_path)
    assert not [entry for entry in found.left_out if entry.file == "good.json"] or any(
        "fuzz.json" in entry.reason for entry in found.left_out
    )
    seen = {file for row in found.rows for file in (row["file"], *row["others"])}
    assert seen | {entry.file for entry in found.left_out} == {"good.json", "fuzz.json"}
    assert is_clean(devices_text(found))
    json.dumps(asdict(found), allow_nan=False).encode()
    with suppress(ProfileError), alarm(60 if is_drawn else 5):
        profile = read(fuzz)
        agree(msgspec.to_builtins(profile), json.loads(text))
        assert is_clean(markdown_section(profile) + table11_beside(profile).markdown())
        csv_table([profile])
        drawn = draw(profile) if is_drawn else Drawn([], [])
        render_page([Source(profile, drawn, text)]).encode()
    for a, b in ((good, fuzz), (fuzz, good), (fuzz, fuzz)):
        for output in ("json", "md"):
            printed = io.StringIO()
            with suppress(EdgeError), redirect_stdout(printed), alarm():
                assert bench(["--compare", str(a), str(b), "-o", output]) == 0
            assert is_clean(printed.getvalue())


def is_clean(text):
    """Writable as UTF-8, and without characters that are unsafe on a terminal."""
    text.encode()
    return with_escapes(text) == text


def agree(ours, theirs):
    """Every value that we read is what json reads, or a default for what is not there."""
    if isinstance(ours, dict):
        for key in ours.keys() & theirs.keys():
            agree(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            agree(one, other)
    else:
        assert ours == theirs


def bench(argv):
    return cli_bench.run(parser_of("bench").parse_args(argv))
