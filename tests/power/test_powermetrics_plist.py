"""Reading a record without its arrays gives what plistlib gives, less the arrays."""

import plistlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge.power.powermetrics_plist as module
from edge.power.powermetrics_plist import read_dictionaries
from tests.support.fake_powermetrics import CHIPS, record

VALUES = st.recursive(
    st.integers(-(2**40), 2**40)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text("ab<>&/array!-[] \n\té", max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["clusters", "processor", "<array>", "a"]), inner)
    ),
    max_leaves=12,
)
# What may stand between two tags and make `<array>` no tag, or a tag look otherwise.
ODD = (
    b"<!-- <array> -->",
    b"<!-- </array> -->",
    b"<?pi <array>?>",
    b"<key>x</key><string><![CDATA[<array>]]></string>",
    b"<key>x</key><array/>",
    b"<key>x</key><array />",
    b"<key>x</key><array\n></array>",
    b"<key>x</key><array a='b'><array>1</array ></array>",
    b"<array>",
    b"</array>",
    b"</dict><dict>",
)


def emptied(value):
    """The same with its arrays empty."""
    if isinstance(value, dict):
        return {key: emptied(v) for key, v in value.items()}
    return [] if isinstance(value, list) else value


def outcome(read, data):
    try:
        return emptied(read(data))
    except Exception:
        return "refused"


def through_plistlib(data):
    return plistlib.loads(data, fmt=plistlib.FMT_XML)


@pytest.mark.parametrize("chip", CHIPS)
def test_every_chips_record_is_as_plistlib_has_it(chip):
    data = record(3, chip=chip)
    assert read_dictionaries(data) == emptied(through_plistlib(data))


@given(VALUES)
def test_any_plist_is_as_plistlib_has_it(value):
    data = plistlib.dumps({"processor": value})
    assert emptied(read_dictionaries(data)) == emptied(through_plistlib(data))


@settings(max_examples=300)
@given(VALUES, st.sampled_from(ODD), st.data())
def test_odd_markup_never_gives_another_dictionary(value, odd, draw):
    """Refused by plistlib is refused here, but inside of arrays; else both read the same."""
    data = plistlib.dumps({"processor": value, "b": [1, [2]], "cpu_energy": 3})
    places = [at for at in range(len(data)) if data[at : at + 1] in (b"<", b"\n")]
    at = draw.draw(st.sampled_from(places))
    spoilt = data[:at] + odd + data[at:]
    ours, theirs = outcome(read_dictionaries, spoilt), outcome(through_plistlib, spoilt)
    if theirs != "refused":
        assert ours == theirs
    elif ours != "refused":
        assert ours == emptied(through_plistlib(module._without_arrays(spoilt)))


def test_an_entity_is_refused_before_it_unfolds():
    declared = b'<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE plist [<!ENTITY a "b">]>'
    with pytest.raises(ValueError, match="entity"):
        read_dictionaries(
            declared + b"<plist><dict><key>a</key><string>&a;</string></dict></plist>"
        )


def test_arrays_are_cut_before_objects_are_made_of_them(monkeypatch):
    """The point of it: plistlib gets what is left."""
    sizes = []
    loads = plistlib.loads
    monkeypatch.setattr(
        module.plistlib, "loads", lambda data, fmt: sizes.append(len(data)) or loads(data, fmt=fmt)
    )
    data = record(3, chip="M2 Ultra")
    read_dictionaries(data)
    assert sizes[0] < len(data) / 20


def test_a_record_cut_inside_of_an_array_is_refused():
    data = record(3, chip="M1")
    begin, end = data.index(b"<array>") + 50, data.rindex(b"</array>")
    with pytest.raises(Exception, match="mismatched tag"):
        read_dictionaries(data[:begin] + data[end - 100 :])
