"""What a generated program can do to this machine: nothing that is promised not to happen."""

import contextlib
import platform
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.errors import EdgeError
from edge.quality.fim import execute as module
from edge.quality.fim import jail
from edge.quality.fim.execute import Limits, check_sandbox, execute

FAST = Limits(wall_s=0.4, cpu_s=10, memory_bytes=256 << 20)


def sandbox() -> str | None:
    """Why there is none here."""
    try:
        check_sandbox()
    except EdgeError as error:
        return str(error)
    return None


REFUSED = sandbox()
runs = pytest.mark.skipif(REFUSED is not None, reason=REFUSED or "")
linux = pytest.mark.skipif(platform.system() != "Linux", reason="Linux's filter")
DENIED = "PermissionError"


@runs
@pytest.mark.parametrize(
    ("program", "outcome", "reason"),
    [
        ("x = 1", "passed", ""),
        ("print('x' * 10_000_000)", "passed", ""),
        ("import sys; assert sys.stdin.read() == '' and sys.argv[1:] == []", "passed", ""),
        ("assert __name__ == '__main__'", "passed", ""),
        ("import threading as t; a = t.Thread(target=int); a.start(); a.join()", "passed", ""),
        ("import threading as t, time; t.Thread(target=time.sleep, args=(99,)).start()", "passed",
         ""),
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("def f(:", "failed", "SyntaxError"),
        ("x = '\ud800'", "failed", "SyntaxError"),
        ("def f(): return f()\nf()", "failed", "RecursionError"),
        ("raise SystemExit(0)", "failed", "SystemExit"),
        ("import os; os._exit(0)", "failed", "it ended itself"),
        ("import ctypes; ctypes.string_at(0)", "failed", "ended by signal 11"),
        ("raise ValueError('\\x1b[2J' + 'x' * 9999)", "failed", "ValueError: "),
        ("x = bytearray(1 << 30)", "failed", "MemoryError"),
        ("open('a', 'wb').write(bytes(20 << 20))", "failed", "OSError"),
        ("while True:\n    open(str(len(a)), 'w') if 'a' in dir() else 0\n    a = [0]", "timed out",
         ""),
        ("import time; time.sleep(99)", "timed out", ""),
    ],
)  # fmt: skip
def test_a_program_ends_in_one_of_the_ways(program, outcome, reason):
    limits = FAST if outcome == "timed out" else Limits(memory_bytes=256 << 20)
    verdict = execute(program, limits)
    assert verdict.outcome == outcome
    assert verdict.reason.startswith(reason)
    assert len(verdict.reason) < 2000 and verdict.reason.isprintable()


@runs
def test_cpu_time_is_bounded_too():
    assert execute("while True: pass", Limits(cpu_s=0.1)).outcome == "timed out"


@runs
@pytest.mark.parametrize("family", ["INET", "INET6", "UNIX", "NETLINK"])
def test_no_socket_reaches_a_server_that_listens(family, tmp_path):
    address, server = _listening(family, tmp_path)
    heard = []
    with server:
        server.settimeout(0.01)
        verdict = execute(
            f"import socket as s\nc = s.socket(s.AF_{family})\nc.connect({address!r})\n"
            "c.send(b'out')"
        )
        with contextlib.suppress(TimeoutError):
            heard.append(server.accept())
    assert verdict.outcome == "failed" and verdict.reason.startswith(DENIED)
    assert heard == []


def _listening(family, folder):
    """A server that a process outside the jail could reach."""
    if family == "UNIX":
        server, address = socket.socket(socket.AF_UNIX), str(folder / "s")
    else:
        server, address = socket.socket(), ("127.0.0.1", 0)
    server.bind(address)
    server.listen()
    if family != "UNIX":
        address = server.getsockname()
    with socket.socket(server.family) as client:
        client.connect(address)
        server.accept()[0].close()
    return address, server


@runs
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socketpair()",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.kill(-1, 9)",
        "import resource as r; r.prlimit(1, r.RLIMIT_CPU)",
    ],
)
def test_nothing_is_started_and_nobody_is_hurt(code):
    verdict = execute(code)
    assert (verdict.outcome, verdict.reason.partition(":")[0]) == ("failed", DENIED)


@runs
@linux
@pytest.mark.parametrize("name", sorted(jail.DENIED["x86_64"]))
def test_every_denied_call_is(name):
    number = jail.DENIED[platform.machine()].get(name)
    if number is None:
        pytest.skip(f"{platform.machine()} has no {name}")
    # EPERM for any arguments: the filter looks before the kernel does.
    assert execute(_refused_call(number, 1)).outcome == "passed"


@runs
@linux
def test_what_the_filter_cannot_read_is_not_there():
    assert execute(_refused_call(jail.CLONE3, 38)).outcome == "passed"  # ENOSYS


def _refused_call(number, error):
    return (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        f"assert c.syscall({number}, 0, 0, 0, 0, 0, 0) == -1\n"
        f"assert ctypes.get_errno() == {error}, ctypes.get_errno()"
    )


@runs
@linux
def test_calls_of_another_architecture_end_the_program():
    number = jail.X32_BIT | 41
    code = f"import ctypes; ctypes.CDLL(None).syscall({number}, 0, 0, 0)"
    assert execute(code).reason == "ended by signal 31"


@runs
@linux
def test_the_network_is_not_there_to_begin_with():
    verdict = execute(
        "lines = open('/proc/self/net/dev').read().splitlines()[2:]\n"
        "assert [line.split(':')[0].strip() for line in lines] == ['lo'], lines"
    )
    if not _has_namespaces():
        pytest.skip("the kernel lets nobody make a network namespace here")
    assert verdict.outcome == "passed"


def _has_namespaces():
    code = f"import ctypes; raise SystemExit(ctypes.CDLL(None).unshare({0x50000000}) and 1)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@runs
@linux
def test_nothing_outside_its_folder_is_written(tmp_path):
    if not _has_landlock():
        pytest.skip("the kernel has no Landlock")
    (tmp_path / "kept").write_text("x")
    for code in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(tmp_path / 'kept')!r}, 'a')",
        f"import os; os.remove({str(tmp_path / 'kept')!r})",
        f"import os; os.rename({str(tmp_path / 'kept')!r}, 'mine')",
        f"import os; os.truncate({str(tmp_path / 'kept')!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'dir')!r})",
    ):
        assert execute(code).reason.startswith((DENIED, "OSError")), code
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "x"
    assert execute("open('a', 'w').write('x'); import os; os.remove('a')").outcome == "passed"


def _has_landlock():
    import ctypes

    return ctypes.CDLL(None).syscall(jail.CREATE_RULESET, None, 0, 1) > 0


@runs
def test_the_environment_is_empty_and_the_home_is_the_folder(monkeypatch):
    monkeypatch.setenv("EDGE_SECRET", "x")
    code = (
        "import os, sys, pathlib\n"
        "assert set(os.environ) <= {'HOME', 'TMPDIR', 'LC_ALL', 'LC_CTYPE'}, list(os.environ)\n"
        "assert pathlib.Path.home() == pathlib.Path.cwd()\n"
        "assert sys.flags.isolated\n"
        "assert [f for f in os.listdir('/dev/fd') if int(f) > 2 and os.path.exists('/dev/fd/' + f)"
        " and 'pipe' not in os.readlink('/dev/fd/' + f)] == []"
    )
    assert execute(code) == module.Verdict("passed")


@runs
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = threading.active_count(), len(list(Path("/dev/fd").iterdir()))
    execute("import os; os.makedirs('a/b'); open('a/b/c', 'w'); os.chmod('a/b', 0)")
    execute("import time; time.sleep(99)", FAST)
    assert list(tmp_path.iterdir()) == []
    assert (threading.active_count(), len(list(Path("/dev/fd").iterdir()))) == before


@runs
def test_an_interrupt_ends_the_program(monkeypatch):
    started = []

    class Interrupted(module.subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(module.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute("import time; time.sleep(99)")
    assert started[0].returncode == -9


def test_a_machine_that_is_not_known_refuses(monkeypatch, tmp_path):
    broken = tmp_path / "jail.py"
    source = Path(jail.__file__).read_text()
    broken.write_text(source.replace('"x86_64": 0x', '"x": 0x').replace('"aarch64": 0x', '"y": 0x'))
    monkeypatch.setattr(module.jail, "__file__", str(broken))
    if platform.system() == "Linux":
        verdict = execute("open('/nowhere')")
        assert verdict.outcome == "refused"
        assert verdict.reason.startswith("no system call filter is known for")


@linux
@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [("socket", "the network is still there"), ("fork", "processes can still be started")],
)
def test_a_filter_that_does_not_work_refuses(monkeypatch, tmp_path, left_out, sentence):
    broken = tmp_path / "jail.py"
    source = Path(jail.__file__).read_text()
    if left_out == "socket":
        source = source.replace('"socket": ', '"socket": 9990 + ')
    else:
        source = source.replace('"fork": ', '"fork": 9990 + ')
        source = source.replace("CLONE_THREAD, *yes", "0xFFFFFFFF, *yes")
        source = source.replace("(BITS, 0, 1, CLONE_THREAD)", "(BITS, 0, 1, 0xFFFFFFFF)")
    broken.write_text(source)
    monkeypatch.setattr(module.jail, "__file__", str(broken))
    with pytest.raises(EdgeError, match=rf"run safely here \({sentence}\); leave out --execute"):
        check_sandbox()


def test_a_python_that_does_not_start_refuses(monkeypatch):
    monkeypatch.setattr(module.jail, "__file__", "/nowhere/jail.py")
    assert execute("pass").outcome == "refused"


@linux
@pytest.mark.parametrize("machine", sorted(jail.AUDIT_ARCH))
def test_jumps_of_the_filter_stay_inside(machine):
    """For the architecture that does not run here as well."""
    program = jail.bpf(machine, 4711)
    code = list(struct.iter_unpack("=HBBI", program))
    assert code[-1] == (jail.RETURN, 0, 0, jail.ALLOW)
    for number in jail.DENIED[machine].values():
        assert _verdict(code, machine, number) == jail.ERRNO | 1
    assert _verdict(code, machine, 9999) == jail.ALLOW
    assert _verdict(code, "x", 0) == jail.KILL
    assert _verdict(code, machine, jail.CLONE3) == jail.ERRNO | 38
    for call, yes, no in (
        (jail.CLONE, jail.CLONE_THREAD | 7, 17),
        (jail.TGKILL, 4711, 4712),
        (jail.PRLIMIT, 0, 1),
    ):
        assert _verdict(code, machine, call[machine], yes) == jail.ALLOW
        assert _verdict(code, machine, call[machine], no) == jail.ERRNO | 1


def _verdict(code, machine, number, argument=0):
    """Classic BPF, as the kernel runs it."""
    data = {jail.NUMBER_AT: number, jail.ARCH_AT: jail.AUDIT_ARCH.get(machine, 0),
            jail.FIRST_ARGUMENT_AT: argument}  # fmt: skip
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == jail.RETURN:
            return k
        if operation == jail.LOAD:
            accumulator = data[k]
        else:
            holds = accumulator == k if operation == jail.EQUAL else bool(accumulator & k)
            at += if_true if holds else if_false


def test_the_jail_needs_nothing_but_python():
    source = Path(jail.__file__).read_text()
    names = [line.split()[1] for line in source.splitlines() if line.startswith(("import", "from"))]
    assert set(names) <= sys.stdlib_module_names
