"""States as macOS and Linux tell them; the texts have the shape of the real ones."""

from dataclasses import replace

import pytest

from edge.device import state as state_module
from edge.device.state import State, allowed_load, read_state, warnings_between
from edge.device.system import output_of

LAPTOP = (
    "Now drawing from 'Battery Power'\n"
    " -InternalBattery-0 (id=19267683)\t87%; discharging; 4:06 remaining present: true\n"
)
CHARGING = (
    "Now drawing from 'AC Power'\n"
    " -InternalBattery-0 (id=19267683)\t100%; charged; 0:00 remaining present: true\n"
)
DESKTOP = "Now drawing from 'AC Power'\n"
SETTINGS = """System-wide power settings:
Currently in use:
 standby              1
 sleep                1 (sleep prevented by powerd, caffeinate)
 {mode}
 womp                 1
"""


def mac(batt=DESKTOP, mode="lowpowermode         0", thermal="0", pressure="1"):
    key = state_module.THERMAL_KEY
    answers = {
        ("pmset", "-g", "batt"): batt,
        ("pmset", "-g"): SETTINGS.format(mode=mode),
        ("notifyutil", "-g", key): f"{key} {thermal}\n",
        ("sysctl", "-n", "kern.memorystatus_vm_pressure_level"): f"{pressure}\n",
    }
    return read_state("Darwin", lambda command: answers[tuple(command)])


# --- macOS


def test_a_quiet_desktop_mac():
    state = mac()
    assert state.load_1m is not None and state.load_1m >= 0
    assert replace(state, load_1m=None) == State(
        power_source="mains", low_power=False, thermal="nominal", memory_pressure="normal"
    )


def test_a_laptop_on_battery():
    state = mac(batt=LAPTOP)
    assert (state.power_source, state.battery_percent) == ("battery", 87)
    assert (mac(batt=CHARGING).power_source, mac(batt=CHARGING).battery_percent) == ("mains", 100)


@pytest.mark.parametrize(
    ("mode", "low"),
    [
        ("lowpowermode         1", True),
        ("lowpowermode         0", False),
        ("powermode            1", True),
        ("powermode            2", False),  # high power
        ("powermode            0", False),
        ("lidwake              1", None),
    ],
)
def test_low_power_mode(mode, low):
    assert mac(mode=mode).low_power is low


@pytest.mark.parametrize(
    ("number", "level"),
    [("0", "nominal"), ("1", "moderate"), ("2", "heavy"), ("4", "sleeping"), ("9", "level 9")],
)
def test_thermal_pressure(number, level):
    assert mac(thermal=number).thermal == level


@pytest.mark.parametrize(("number", "level"), [("1", "normal"), ("2", "warn"), ("4", "critical")])
def test_memory_pressure(number, level):
    assert mac(pressure=number).memory_pressure == level


def test_programs_that_do_not_answer_leave_it_unknown():
    state = read_state("Darwin", lambda command: "")
    assert replace(state, load_1m=None) == State()
    assert warnings_between(replace(state, load_1m=0.0), replace(state, load_1m=0.0)) == {}


# --- Linux


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


PRESSURE = "some avg10={some} avg60=0.00 avg300=0.00 total=0\nfull avg10={full} avg60=0.00"
CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"
SUPPLY = "sys/class/power_supply"


def linux(root):
    return read_state("Linux", lambda command: pytest.fail(f"runs {command}"), root)


def test_a_linux_laptop(tmp_path):
    cpus = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            f"{SUPPLY}/AC/type": "Mains",
            f"{SUPPLY}/AC/online": 0,
            f"{SUPPLY}/BAT0/type": "Battery",
            f"{SUPPLY}/BAT0/status": "Discharging",
            f"{SUPPLY}/BAT0/capacity": 64,
            f"{SUPPLY}/hid-mouse/type": "Battery",
            f"{SUPPLY}/hid-mouse/scope": "Device",
            f"{SUPPLY}/hid-mouse/capacity": 5,
            f"{CPUFREQ}/scaling_governor": "powersave",
            f"{CPUFREQ}/scaling_driver": "intel_pstate",
            f"{cpus}/cpufreq/policy0/scaling_cur_freq": 1_800_000,
            f"{cpus}/cpufreq/policy1/scaling_cur_freq": 2_200_000,
            f"{cpus}/cpu0/thermal_throttle/core_throttle_count": 3,
            f"{cpus}/cpu1/thermal_throttle/core_throttle_count": 4,
            "proc/pressure/memory": PRESSURE.format(some="2.50", full="0.00"),
        },
    )
    state = linux(tmp_path)
    assert replace(state, load_1m=None) == State(
        power_source="battery",
        battery_percent=64,
        low_power=False,  # intel_pstate's powersave is the ordinary governor
        governor="powersave",
        throttled=7,
        memory_pressure="warn",
        cpu_mhz=2000.0,
    )


def test_an_adapter_that_is_on(tmp_path):
    write(tmp_path, {f"{SUPPLY}/AC/type": "Mains", f"{SUPPLY}/AC/online": 1})
    assert linux(tmp_path).power_source == "mains"


def test_a_mouse_is_not_the_machines_battery(tmp_path):
    mouse = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": 5}
    write(tmp_path, {f"{SUPPLY}/mouse/{key}": value for key, value in mouse.items()})
    state = linux(tmp_path)
    assert (state.power_source, state.battery_percent) == (None, None)


@pytest.mark.parametrize(
    ("driver", "profile", "low"),
    [
        ("acpi-cpufreq", "balanced", True),
        ("amd-pstate-epp", "balanced", False),
        ("intel_pstate", "low-power", True),
    ],
)
def test_low_power_on_linux(tmp_path, driver, profile, low):
    write(
        tmp_path,
        {
            f"{CPUFREQ}/scaling_governor": "powersave",
            f"{CPUFREQ}/scaling_driver": driver,
            "sys/firmware/acpi/platform_profile": profile,
        },
    )
    assert linux(tmp_path).low_power is low


@pytest.mark.parametrize(
    ("some", "full", "level"),
    [("0.00", "0.00", "normal"), ("1.50", "0.20", "warn"), ("9.00", "3.00", "critical")],
)
def test_memory_pressure_on_linux(tmp_path, some, full, level):
    write(tmp_path, {"proc/pressure/memory": PRESSURE.format(some=some, full=full)})
    assert linux(tmp_path).memory_pressure == level


def test_a_virtual_machine_tells_little(tmp_path):
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2600.000\n"})
    assert replace(linux(tmp_path), load_1m=None) == State(cpu_mhz=2600.0)


def test_this_machine():
    state = read_state()
    assert state.load_1m is not None
    assert state.memory_pressure in (None, "normal", "warn", "critical")


# --- warnings

QUIET = State(
    power_source="mains",
    battery_percent=80,
    low_power=False,
    governor="performance",
    thermal="nominal",
    throttled=12,
    load_1m=0.4,
    memory_pressure="normal",
    cpu_mhz=3000.0,
)


def test_a_quiet_machine_leaves_no_doubt():
    assert warnings_between(QUIET, QUIET) == {}
    assert warnings_between(State(), State()) == {}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"power_source": "battery"}, {"power_source": "battery"}, "ran on battery: plug it in"),
        ({"power_source": "UPS"}, {"power_source": "UPS"}, "ran on UPS"),
        ({}, {"power_source": "battery"}, "changed from mains to battery"),
        ({"low_power": True}, {}, "low power mode was on: switch it off"),
        ({"low_power": True, "governor": "powersave"}, {"governor": "powersave"}, "cpupower"),
        ({"thermal": "heavy"}, {}, "heavy, not nominal, before the run"),
        ({}, {"thermal": "moderate"}, "moderate, not nominal, after the run"),
        ({}, {"throttled": 15}, "slowed for its heat 3 times"),
        ({}, {"governor": "schedutil"}, "changed during the run (from performance to schedutil)"),
        ({"load_1m": 3.0}, {}, "(load 3.0): close them"),
        ({}, {"memory_pressure": "critical"}, "memory was short (pressure critical)"),
    ],
)
def test_each_doubt_is_one_sentence_with_what_to_do(before, after, words):
    (found,) = warnings_between(replace(QUIET, **before), replace(QUIET, **after)).values()
    assert words in found


def test_our_own_threads_are_no_foreign_load():
    busy = replace(QUIET, load_1m=8.6)
    assert warnings_between(busy, busy, threads=8) == {}
    assert "8 of it ours" in warnings_between(busy, replace(QUIET, load_1m=9.5), threads=8)["load"]


# --- small programs


def test_a_program_that_is_missing_or_fails_says_nothing(tmp_path):
    assert output_of(["no-such-program-anywhere"]) == ""
    assert output_of(["sh", "-c", "echo part; exit 1"]) == "part"
    assert output_of(["sh", "-c", "printf 'caf\\351'"]) == "caf\N{REPLACEMENT CHARACTER}"


def test_a_program_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("edge.device.system.TIMEOUT_S", 0.01)
    assert output_of(["sh", "-c", "read -r line </dev/zero"]) == ""


def test_idle_macs_have_a_load():
    """Load 2 on ten cores is nobody's work; on two cores it is."""
    busy = replace(QUIET, load_1m=2.0)
    assert (allowed_load(2), allowed_load(10)) == (1.0, 2.5)
    for cores, sentences in ((10, 0), (2, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state_module.os, "cpu_count", lambda cores=cores: cores)
            assert len(warnings_between(busy, busy)) == sentences
