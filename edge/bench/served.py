"""The profile of a running server: its workloads, jobs and subject, and where it runs."""

import sys
from collections.abc import Sequence

from msgspec import structs

from edge.bench.engines.engine import SERVER
from edge.bench.row import Subject
from edge.bench.runner import split_trials
from edge.bench.server import short_name
from edge.bench.worker import Job
from edge.bench.workload import plan_workloads
from edge.bench.writer import empty_profile, without_places
from edge.convert.artefacts.recipes import Recipe
from edge.device.describe import Device, describe_device
from edge.errors import EdgeError
from edge.power.choose import NoMeter, choose_meter
from edge.power.meter import Meter
from edge.profile.profile import Method, ModelInfo, Profile, Workload

NOT_HERE = "power was not measured: the server runs on another machine"
UNKNOWN_PROCESSOR = (
    "power was not measured: whether the server computes on the CPU or a GPU is not known; name "
    "the meter with --power rapl or --power nvml"
)
NO_QUALITY = "the quality of a served model is not measured: use edge eval on its files"
WARMUPS = 1


def served_workloads(
    prompts: Sequence[int], generates: Sequence[int], joint: Sequence[tuple[int, int]]
) -> list[Workload]:
    """The workloads of -p, -n and -pg: a request always generates behind its prompt."""
    planned = plan_workloads(prompts, generates, [0], joint)
    if any(workload.prompt == 0 for workload in planned):
        raise EdgeError("A request to a server has a prompt; give as many lengths to -p as to -n.")
    return list(dict.fromkeys(structs.replace(w, joint=w.generate > 0) for w in planned))


def served_job(
    url: str, model: str, workload: Workload, repetitions: int, rounds: int, min_window_s: float
) -> Job:
    """Requests from one process."""
    return Job(
        engine=SERVER,
        path=url,
        workload=workload,
        vocab_size=0,
        seed=0,
        repetitions=split_trials(repetitions, rounds)[1],
        warmups=WARMUPS,
        threads=0,
        min_window_s=min_window_s,
        served=model,
    )


def served_meter(source: str, is_local: bool) -> Meter:
    """The meter of the server's machine; on Linux none covers both CPU and GPU."""
    if not is_local:
        return NoMeter(NOT_HERE)
    is_unknown = source == "auto" and sys.platform == "linux"
    return NoMeter(UNKNOWN_PROCESSOR) if is_unknown else choose_meter(source)


def served_subject(model: str) -> Subject:
    """What the server calls its model; nothing is known of its files."""
    return Subject(Recipe(short_name(model), "HTTP", "as served"), None, None)


def served_profile(model: str, argv: Sequence[str], method: Method, is_local: bool) -> Profile:
    """A profile without rows; the device of a remote server is not known."""
    method = structs.replace(
        method,
        decode_rate="through HTTP: sum of (N - 1) / sum of (t_N - t_1) over a trial's requests",
        excluded=["load", "connecting"],
        seed=None,
        peak_memory=None,
        float32_products=None,
    )
    device = describe_device() if is_local else Device("remote server of unknown kind")
    source = f"{'local' if is_local else 'remote'} server"
    info = ModelInfo(short_name(model), source)
    return empty_profile(info, without_places(argv), method, device)
