"""Run one program that nobody vouches for; `edge.quality.fim.execute` starts this as a script.

    python -I jail.py FOLDER CPU_SECONDS MEMORY_BYTES

The script locks itself in for good, tries the lock, and only then runs FOLDER/program.py within
itself. What became of it goes to the pipe that was stdout. It has the standard library alone.

On Linux a seccomp filter refuses new sockets, new processes and other programs, signals to and
looks into other processes, and new namespaces; where the kernel lets us, there is no network to
begin with (a network namespace of its own), and nothing outside FOLDER can be written, made or
deleted (Landlock, Linux 5.13). What the filter alone promises is promised everywhere.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import resource
import signal
import socket
import struct
import sys
from pathlib import Path

LARGEST_FILE_BYTES, MOST_FILES = 16 << 20, 64
REASON_CHARACTERS = 200
READY, PASSED, FAILED, REFUSED = "ready", "passed", "failed", "refused"

# --- Linux: include/uapi/linux/{audit,seccomp,filter,landlock,sched,prctl}.h

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
CLONE_NEWUSER, CLONE_NEWNET, CLONE_THREAD = 0x10000000, 0x40000000, 0x00010000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 1, 22, 38, 2
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, EQUAL, BITS, RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF, on the 32-bit accumulator
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # struct seccomp_data, little endian
# By architecture; the names are for the reader.
DENIED = {
    "x86_64": {
        "socket": 41, "socketpair": 53, "io_uring_setup": 425,
        "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
        "kill": 62, "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "unshare": 272, "setns": 308, "mount": 165, "bpf": 321, "perf_event_open": 298,
        "add_key": 248, "request_key": 249, "keyctl": 250,
        "shmget": 29, "semget": 64, "msgget": 68,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "io_uring_setup": 425,
        "execve": 221, "execveat": 281,
        "kill": 129, "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "unshare": 97, "setns": 268, "mount": 40, "bpf": 280, "perf_event_open": 241,
        "add_key": 217, "request_key": 218, "keyctl": 219,
        "shmget": 194, "semget": 190, "msgget": 186,
    },
}  # fmt: skip
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
# Only with the number in its first argument: one's own process, and 0, which means that too.
TGKILL = {"x86_64": 234, "aarch64": 131}
PRLIMIT = {"x86_64": 302, "aarch64": 261}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
# Writing, removing and making; 13 and 14 (move, truncate) came with versions 2 and 3.
LANDLOCK_RIGHTS = sum(1 << bit for bit in (1, *range(4, 13)))
LANDLOCK_LATER = ((2, 13), (3, 14))
PATH_BENEATH = 1


class Refused(Exception):
    """It cannot be locked in here."""


def lock(folder: Path, cpu_s: float, memory_bytes: int) -> None:
    """Give up everything that the program must not have.

    Raises:
        Refused: something of it could not be given up.
    """
    limit(cpu_s, memory_bytes)
    system = platform.system()
    if system == "Linux":
        _lock_linux(folder)
    elif system != "Darwin":  # there sandbox-exec has done it
        raise Refused(f"no sandbox is known for {system}")
    _try_lock()


def limit(cpu_s: float, memory_bytes: int) -> None:
    """What the process may take of the machine."""
    wanted = {
        resource.RLIMIT_CPU: math.ceil(cpu_s),
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: LARGEST_FILE_BYTES,
        resource.RLIMIT_NOFILE: MOST_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        # A second between the two of time: at the hard one the kernel kills without saying why.
        top = most + (kind == resource.RLIMIT_CPU)
        top = top if hard == resource.RLIM_INFINITY else min(top, hard)
        try:
            resource.setrlimit(kind, (min(most, top), top))
        except (OSError, ValueError):
            if platform.system() == "Linux":  # macOS does not let every limit be set
                raise Refused("a limit of memory or time cannot be set") from None


def _lock_linux(folder: Path) -> None:
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        raise Refused(f"no system call filter is known for {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)  # where it may not, the filter is enough
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Refused("the kernel does not let a process give up privileges")
    _restrict_writes(libc, folder)
    program = bpf(machine, os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog, which pads after its first field
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(header), 0, 0):
        raise Refused("the kernel takes no system call filter")


def bpf(machine: str, pid: int) -> bytes:
    """The filter: classic BPF, 8 bytes an instruction."""
    arch, denied = AUDIT_ARCH[machine], DENIED[machine]
    no, absent = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
    code = [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, arch),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (BITS, 0, 1, X32_BIT),
        (RETURN, 0, 0, KILL),
    ]
    for number in denied.values():
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, no)]
    # Its flags lie in memory, where a filter cannot look: as if the kernel were older.
    code += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, absent)]
    argument = (LOAD, 0, 0, FIRST_ARGUMENT_AT)
    yes_or_no = [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, no)]
    code += [(EQUAL, 0, 4, CLONE[machine]), argument, (BITS, 0, 1, CLONE_THREAD), *yes_or_no]
    for call, allowed in ((TGKILL, pid), (PRLIMIT, 0)):
        code += [(EQUAL, 0, 4, call[machine]), argument, (EQUAL, 0, 1, allowed), *yes_or_no]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _restrict_writes(libc: ctypes.CDLL, folder: Path) -> None:
    """Let nothing outside the folder be written, where the kernel can see to it."""
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    rights = LANDLOCK_RIGHTS | sum(1 << bit for since, bit in LANDLOCK_LATER if version >= since)
    rules = libc.syscall(CREATE_RULESET, struct.pack("=Q", rights), 8, 0)
    inside = os.open(folder, os.O_RDONLY)
    allowed = struct.pack("=Qi", rights, inside)
    if (
        rules < 0
        or libc.syscall(ADD_RULE, rules, PATH_BENEATH, allowed, 0)
        or libc.syscall(RESTRICT_SELF, rules, 0)
    ):
        raise Refused("the kernel has Landlock and does not apply it")
    os.close(inside)
    os.close(rules)


def _try_lock() -> None:
    """Do what must not be possible.

    Raises:
        Refused: it is.
    """
    try:
        with socket.socket() as connection:
            connection.connect(("127.0.0.1", 9))
        raise Refused("the network is still there")
    except PermissionError:
        pass
    except OSError:
        raise Refused("the network is still there") from None
    try:
        if not os.fork():
            os._exit(0)
    except OSError:
        return
    raise Refused("processes can still be started")


# --- the program


def run(folder: Path) -> str:
    """Run it to its end: "" if it reached that, or the reason why not."""
    try:
        source = (folder / "program.py").read_bytes()
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # SystemExit too: the tests come last
        return f"{type(error).__name__}: {error}".strip()[:REASON_CHARACTERS]
    return ""


def main(folder: Path, cpu_s: float, memory_bytes: int) -> None:
    """Lock, run, tell; never returns."""
    pipe = os.dup(1)
    os.dup2(2, 1)  # stderr is /dev/null

    def tell(word: str, reason: str = "") -> None:
        os.write(pipe, f"{word} {reason!a}\n".encode())

    try:
        lock(folder, cpu_s, memory_bytes)
    except Refused as error:
        tell(REFUSED, str(error))
        os._exit(1)
    tell(READY)
    sys.argv[1:] = []
    reason = run(folder)
    tell(FAILED if reason else PASSED, reason)
    os._exit(0)  # whatever threads it left behind


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
