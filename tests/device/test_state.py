"""The machine's state, from texts in the form of macOS's and Linux's."""

from dataclasses import replace

import pytest

from edge.device import state as module
from edge.device.state import State, read_state, warnings_between
from edge.device.system import output_of
from tests.device.conftest import write_files

DESKTOP = "Now drawing from 'AC Power'\n"
LAPTOP = (
    "Now drawing from 'Battery Power'\n"
    " -InternalBattery-0 (id=19267683)\t87%; discharging; 4:06 remaining present: true\n"
)
SETTINGS = "Currently in use:\n sleep                1 (sleep prevented by powerd)\n {mode}\n"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, {"power_source": "mains", "battery_percent": None, "low_power": None}),
        ({"batt": LAPTOP}, {"power_source": "battery", "battery_percent": 87}),
        ({"mode": "lowpowermode         1"}, {"low_power": True}),
        ({"mode": "powermode            2"}, {"low_power": False}),  # high power
        ({"thermal": "1"}, {"thermal": "moderate", "memory_pressure": "normal"}),
        ({"thermal": "9"}, {"thermal": "level 9"}),
        ({"pressure": "4"}, {"memory_pressure": "critical", "thermal": "nominal"}),
        (dict.fromkeys(["batt", "thermal", "pressure"], ""), vars(State())),
    ],
)
def test_the_state_of_a_mac(monkeypatch, answers, expected):
    key, quiet = module.THERMAL_KEY, {"batt": DESKTOP, "mode": "", "thermal": 0, "pressure": 1}
    texts = {**quiet, **answers}
    outputs = {
        ("pmset", "-g", "batt"): texts["batt"],
        ("pmset", "-g"): SETTINGS.format(mode=texts["mode"]),
        ("notifyutil", "-g", key): f"{key} {texts['thermal']}\n",
        ("sysctl", "-n", "kern.memorystatus_vm_pressure_level"): f"{texts['pressure']}\n",
    }
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(module, "output_of", outputs.__getitem__)
    state = replace(read_state(), load_1m=None)
    assert {name: getattr(state, name) for name in expected} == expected


# --- Linux

PRESSURE = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10={} avg60=0.00"
CPUS = "sys/devices/system/cpu"
CPUFREQ = f"{CPUS}/cpu0/cpufreq"
SUPPLY = "sys/class/power_supply"
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": 5}
FLAT_MOUSE = {f"{SUPPLY}/mouse/{key}": value for key, value in MOUSE.items()}
GOVERNED = {f"{CPUFREQ}/scaling_governor": "powersave"}
LAPTOP_FILES = {
    f"{SUPPLY}/AC/type": "Mains",
    f"{SUPPLY}/AC/online": 0,
    f"{SUPPLY}/BAT0/type": "Battery",
    f"{SUPPLY}/BAT0/status": "Discharging",
    f"{SUPPLY}/BAT0/capacity": 64,
    f"{CPUFREQ}/scaling_governor": "powersave",
    f"{CPUFREQ}/scaling_driver": "intel_pstate",
    f"{CPUS}/cpufreq/policy0/scaling_cur_freq": 1_800_000,
    f"{CPUS}/cpufreq/policy1/scaling_cur_freq": 2_200_000,
    f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": 3,
    f"{CPUS}/cpu1/thermal_throttle/core_throttle_count": 4,
    "proc/pressure/memory": PRESSURE.format("2.50", "0.00"),
    **FLAT_MOUSE,
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            LAPTOP_FILES,
            # powersave is the default governor of intel_pstate
            vars(State("battery", 64, False, "powersave", None, 7, None, "warn", 2000.0)),
        ),
        ({f"{SUPPLY}/AC/type": "Mains", f"{SUPPLY}/AC/online": 1}, {"power_source": "mains"}),
        (FLAT_MOUSE, vars(State())),
        ({**GOVERNED, f"{CPUFREQ}/scaling_driver": "acpi-cpufreq"}, {"low_power": True}),
        ({"proc/pressure/memory": PRESSURE.format("9.0", "3.0")}, {"memory_pressure": "critical"}),
        ({"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2600.000"}, {"cpu_mhz": 2600.0}),
    ],
)
def test_the_state_of_a_linux_machine(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    write_files(tmp_path, files)
    state = replace(read_state(), load_1m=None)
    assert {name: getattr(state, name) for name in expected} == expected


# --- warnings

QUIET = State("mains", 80, False, "performance", "nominal", 12, 0.4, "normal")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"power_source": "battery"}, {"power_source": "battery"}, "ran on battery: plug it in"),
        ({}, {"power_source": "battery"}, "changed from mains to battery"),
        ({"low_power": True}, {}, "low power mode was on: switch it off"),
        ({"low_power": True, "governor": "powersave"}, {"governor": "powersave"}, "cpupower"),
        ({"thermal": "heavy"}, {}, "heavy, not nominal, before the run"),
        ({}, {"throttled": 15}, "slowed by heat 3 times"),
        ({"load_1m": 3.0}, {}, "(load 3.0): close them"),
        ({}, {"memory_pressure": "critical"}, "memory was short (pressure critical)"),
    ],
)
def test_a_change_for_the_worse_is_a_warning(monkeypatch, before, after, words):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    assert warnings_between(QUIET, QUIET) == warnings_between(State(), State()) == {}
    (found,) = warnings_between(replace(QUIET, **before), replace(QUIET, **after)).values()
    assert words in found


@pytest.mark.parametrize(("cores", "allowed"), [(2, 1.0), (10, 2.5)])
def test_our_threads_and_the_load_of_an_idle_machine_are_allowed(monkeypatch, cores, allowed):
    monkeypatch.setattr(module.os, "cpu_count", lambda: cores)
    assert "load" not in warnings_between(QUIET, replace(QUIET, load_1m=8 + allowed), threads=8)
    found = warnings_between(QUIET, replace(QUIET, load_1m=8.1 + allowed), threads=8)
    assert "8 of it ours" in found["load"]


# --- small programs


def test_a_program_that_fails_or_hangs_has_no_output(monkeypatch):
    assert output_of(["no-such-program-anywhere"]) == ""
    assert output_of(["sh", "-c", "echo part; exit 1"]) == "part"
    assert output_of(["sh", "-c", "printf 'caf\\351'"]) == "caf\N{REPLACEMENT CHARACTER}"
    monkeypatch.setattr("edge.device.system.TIMEOUT_S", 0.01)
    assert output_of(["sh", "-c", "read -r line </dev/zero"]) == ""
