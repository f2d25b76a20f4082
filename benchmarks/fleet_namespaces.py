"""`mlx.launch` over three hosts that are network namespaces of this machine, as root on Linux.

    sudo python benchmarks/fleet_namespaces.py

Each host has its own network, host name, folder, ssh server and, if there are enough, core; every
packet takes 1 ms. Runs a benchmark of every device, one with different files, one where a device
fails, one where a cable is pulled and one where a host is killed; and `edge eval` over two hosts
against one. Needs iproute2, util-linux, ssh and sshd. Everything is removed at the end.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from select import select

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("ip", "unshare", "nsenter", "taskset", "ssh", "ssh-keygen", "sshd")
LAUNCH = Path(sys.executable).with_name("mlx.launch")
DELAY_S = 0.001
# Of Linux's packet sockets; Python's socket module does not name them.
ETH_P_ALL, SOL_PACKET, PACKET_VNET_HDR = 3, 263, 15
BENCH = ("bench", "demo", "--rows", "mlx-int4", "-p", "64", "-n", "16", "--cooldown", "0")
BENCH += ("--min-window", "1", "--power", "none", "--no-check", "--each")


def sh(command, **more):
    return subprocess.run(command.split(), check=True, **more)


class Switch(threading.Thread):
    """Takes every packet of a link to the others after DELAY_S; not every kernel has netem."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ports: list[socket.socket] = []

    def add(self, link: str) -> None:
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        # Each packet says whether it still needs its checksum or to be cut, and so it is sent on.
        port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        port.bind((link, 0))
        self.ports.append(port)

    def run(self) -> None:
        waiting: deque[tuple[float, socket.socket, bytes]] = deque()
        while True:
            pause_s = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
            for port in select(self.ports, [], [], pause_s)[0]:
                with suppress(OSError):  # the cable was pulled
                    packet, address = port.recvfrom(2**17)
                    if address[2] != socket.PACKET_OUTGOING:
                        waiting.append((time.monotonic() + DELAY_S, port, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, source, packet = waiting.popleft()
                for port in self.ports:
                    with suppress(OSError):
                        if port is not source:
                            port.send(packet)


class Host:
    """A network namespace with a host name, an own folder at `home`, and an ssh server."""

    def __init__(self, number: int, folder: Path, home: Path, stack: ExitStack) -> None:
        self.name, self.space, self.ip = f"mac-{number}", f"edge-{number}", f"10.77.0.{number}"
        self.link, self.folder = f"edge{number}", folder / f"mac-{number}"
        self.folder.mkdir()
        sh(f"ip netns add {self.space}")
        stack.callback(sh, f"ip netns delete {self.space}")
        sh(f"ip link add {self.link} type veth peer eth0 netns {self.space}")
        stack.callback(sh, f"ip link delete {self.link}")
        sh(f"ip link set {self.link} up")
        for device in ("lo", "eth0"):
            sh(f"ip -n {self.space} link set {device} up")
        sh(f"ip -n {self.space} address add {self.ip}/24 dev eth0")
        self.core = f"taskset -c {number % (os.cpu_count() or 1)}"
        sshd = f"{shutil.which('sshd')} -D -e -f {folder}/sshd_config -o ListenAddress={self.ip}"
        inside = f"hostname {self.name}; mount --bind {self.folder} {home}; exec {self.core} {sshd}"
        enter = f"ip netns exec {self.space} unshare --uts --mount sh -c".split()
        with (folder / f"{self.name}.log").open("wb") as log:
            self.server = subprocess.Popen([*enter, inside], stdin=subprocess.DEVNULL, stderr=log)
        stack.callback(self.kill)

    def kill(self) -> None:
        """Ends every process of the host at once, as when it crashes."""
        found = sh(f"ip netns pids {self.space}", capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            os.kill(pid, signal.SIGKILL)
        self.server.wait()

    def plug(self, state: str) -> None:
        sh(f"ip link set {self.link} {state}")

    def profiles(self) -> list[dict]:
        files = sorted((self.folder / "profiles" / "local").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]


class Fleet:
    """Hosts at one switch, and the hostfile; `run` starts mlx.launch on the first."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        keys = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
        subprocess.run(keys, check=True)
        for name, lines in {
            "sshd_config": (
                f"HostKey {folder / 'key'}",
                f"AuthorizedKeysFile {folder / 'key.pub'}",
                "StrictModes no",
                "PermitRootLogin yes",
                "PidFile none",
            ),
            "ssh_config": (
                f"IdentityFile {folder / 'key'}",
                "StrictHostKeyChecking no",
                "UserKnownHostsFile /dev/null",
                "LogLevel ERROR",
            ),
        }.items():
            (folder / name).write_text("\n".join(lines) + "\n")
        (folder / "bin").mkdir()
        ssh = folder / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"\n')
        ssh.chmod(0o755)
        self.hosts = [Host(number, folder, self.home, stack) for number in (1, 2, 3)]
        switch = Switch()
        for host in self.hosts:
            switch.add(host.link)
        switch.start()
        for host in self.hosts:
            self.wait(lambda host=host: self.answers(host), 20)

    def answers(self, host: Host) -> bool:
        command = self.on_first("ssh", host.ip, "true")
        return subprocess.run(command, env=self.environment, capture_output=True).returncode == 0

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def on_first(self, *words: object) -> list[str]:
        """The command in the namespaces of the first host."""
        first = self.hosts[0]
        enter = f"nsenter -t {first.server.pid} -n -u -m --wdns={self.home} {first.core}"
        return [*enter.split(), *map(str, words)]

    def start(self, hosts: int, *words: str) -> subprocess.Popen:
        """Starts edge on some hosts, the first without ssh, as its user would."""
        listed = [
            {"ssh": "127.0.0.1" if i == 0 else host.ip, "ips": [host.ip]}
            for i, host in enumerate(self.hosts[:hosts])
        ]
        hostfile = self.folder / "hosts.json"
        hostfile.write_text(json.dumps(listed))
        launch = (LAUNCH, "--hostfile", hostfile, "--cwd", self.home, "--env", f"PYTHONPATH={ROOT}")
        return subprocess.Popen(
            self.on_first(*launch, "--", sys.executable, "-m", "edge", *words),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=(self.folder / "stdout").open("wb"),
            stderr=(self.folder / "stderr").open("wb"),
        )

    def finish(self, process: subprocess.Popen, limit_s: float = 300) -> tuple[str, str]:
        process.wait(limit_s)
        process.stdin.close()
        return (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()

    def run(self, hosts: int, *words: str) -> tuple[str, str]:
        return self.finish(self.start(hosts, *words))

    @staticmethod
    def wait(is_true, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not is_true():
            if time.monotonic() > end:
                raise SystemExit("the program waited in vain; see the logs above")
            time.sleep(0.1)


def rows_of(host: Host) -> int:
    return sum(len(profile["rows"]) for profile in host.profiles())


def measuring(fleet: Fleet, hosts: list[Host], count: int, *words: str) -> subprocess.Popen:
    """A run over the first `count` hosts of which `hosts` have measured a row."""
    for host in fleet.hosts:
        shutil.rmtree(host.folder / "profiles", ignore_errors=True)
    process = fleet.start(count, *words)
    fleet.wait(lambda: process.poll() is not None or all(map(rows_of, hosts)), 200)
    return process


def every_device(fleet: Fleet) -> str:
    _, err = fleet.run(3, *BENCH, "-r", "3")
    (folder,) = (fleet.hosts[0].folder / "profiles" / "local").glob("*-devices")
    files = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    assert [file["method"].get("fleet_number") for file in files] == [1, 2, 3], err
    reasons = [str(file["rows"][0]["reasons"]) for file in files]
    assert "--each" not in str(reasons)  # hosts of their own
    assert ["mlx.launch takes" in each for each in reasons] == [True, False, False], reasons
    assert list(map(rows_of, fleet.hosts)) == [1, 1, 1]
    return "3 profiles collected, one of each host"


def different_files(fleet: Fleet) -> str:
    source = next(fleet.hosts[0].folder.glob("models/demo/mlx-int4"))
    for host in fleet.hosts:
        shutil.copytree(source, host.folder / "own")
        (host.folder / "own" / "edge.json").unlink()
    with (fleet.hosts[1].folder / "own" / "config.json").open("a") as file:
        file.write(" ")
    before = list(map(rows_of, fleet.hosts))
    _, err = fleet.run(3, "bench", "own", *BENCH[4:], "-r", "1")
    (line,) = (line for line in err.splitlines() if " but " in line)
    assert list(map(rows_of, fleet.hosts)) == before
    return line


def a_device_fails(fleet: Fleet) -> str:
    process = measuring(fleet, fleet.hosts[2:], 3, *BENCH, "-r", "3")
    local = fleet.hosts[2].folder / "profiles" / "local"
    shutil.rmtree(local)
    local.write_text("no folder")
    _, err = fleet.finish(process)
    (line,) = (line for line in err.splitlines() if "mac-3 failed" in line)
    local.unlink()
    assert err.count(" of mac-1") == err.count(" of mac-2") == 1, err
    return line


def a_host_is_killed(fleet: Fleet) -> str:
    process = measuring(fleet, fleet.hosts, 3, *BENCH, "-r", "6", "--rounds", "6")
    begin = time.monotonic()
    fleet.hosts[2].kill()
    _, err = fleet.finish(process)
    took = time.monotonic() - begin
    assert rows_of(fleet.hosts[0]) == rows_of(fleet.hosts[1]) == 1
    assert "what each device measured is in mac-1:" in err, err
    return f"all end within {took:.1f} s; mac-1 and mac-2 keep what they measured"


def a_cable_is_pulled(fleet: Fleet) -> str:
    process = measuring(fleet, fleet.hosts[:2], 2, *BENCH, "-r", "3", "--timeout", "20")
    begin = time.monotonic()
    fleet.hosts[1].plug("down")
    said = "what each device measured is in mac-1:"
    fleet.wait(lambda: said in (fleet.folder / "stderr").read_text(), 200)
    took = time.monotonic() - begin
    fleet.hosts[1].plug("up")  # ssh of mlx.launch would wait for minutes
    fleet.finish(process)
    assert [p["method"]["finished"] for h in fleet.hosts[:2] for p in h.profiles()] == [True] * 2
    return f"both finish and keep their profiles; after {took:.0f} s rank 0 says where they are"


def split_evaluation(fleet: Fleet) -> str:
    words = ("eval", "demo", "--rows", "mlx-int4", "--tokens", "16384", "-o", "json", "--again")
    found, seconds = [], []
    for hosts in (1, 2, 1, 2):
        begin = time.monotonic()
        found.append(fleet.run(hosts, *words)[0])
        seconds.append(time.monotonic() - begin)
    assert found[0] and len(set(found)) == 1, found
    assert not (fleet.hosts[1].folder / "models" / "demo" / "eval").exists()
    return f"the same bytes from 1 and 2 hosts, in {seconds[2]:.1f} and {seconds[3]:.1f} s"


SCENARIOS = (
    *(every_device, split_evaluation, different_files, a_device_fails, a_cable_is_pulled),
    *(a_host_is_killed,),  # the last, for it is not started again
)


def main() -> int:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        print(f"fleet_namespaces.py needs root and {', '.join(missing or PROGRAMS)}")
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-fleet-")))
        fleet = Fleet(folder, stack)
        for scenario in SCENARIOS:
            begin = time.monotonic()
            try:
                found = scenario(fleet)
            except BaseException:
                print((folder / "stderr").read_text(), file=sys.stderr)
                raise
            name = scenario.__name__.replace("_", " ")
            print(f"{name} ({time.monotonic() - begin:.0f} s): {found}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
