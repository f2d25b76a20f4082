"""Kill the converter again and again, and look at what is left.

A process of its own that has imported everything and then forks for every attempt, so that an
attempt costs what the conversion costs. `python -m tests.support.killed_converter JOB` with a
JSON job prints one JSON report per attempt.

What happens to the output folder is counted through Python's audit events (open, mkdir, rename,
remove, ...) and if asked for the converter's progress, so that the n-th can be the last.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import gguf  # noqa: F401  - imported where they are needed, which would be in every child
import psutil
import tokenizers  # noqa: F401

import edge.convert.sources.mlx  # noqa: F401
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import Options
from edge.convert.verify import verify

TOUCHES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "subprocess.Popen")
CHILD_END_S = 30.0


def run(job, source, out, on_step=lambda: None):
    """The conversion that the job asks for; names of what was kept."""
    made = convert(
        open_checkpoint(source),
        [RECIPES[name] for name in job["artefacts"]],
        out,
        lambda name, done: on_step(),
        Options(force=job["older"] is not None),
    )
    return [artefact.recipe.name for artefact in made if artefact.kept]


def converter(job, out, last_step):
    """Convert, and die before step `last_step`; the number of steps that there were."""
    steps = 0

    def on_step():
        nonlocal steps
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, args):
        if event in TOUCHES or (event == "open" and str(args[0]).startswith(str(out))):
            on_step()

    sys.addaudithook(hook)
    run(job, job["source"], out, on_step if job["progress"] else lambda: None)
    return steps


def inspect(job, out):
    """What is visible, whether it is whole, and whether the next run makes all of it."""
    quantisers = [p for p in psutil.process_iter() if str(out) in _command(p)]
    _, alive = psutil.wait_procs(quantisers, CHILD_END_S)
    report = {"alive": len([p for p in alive if p.status() != psutil.STATUS_ZOMBIE])}
    before = look(job, out)
    report["visible"] = {name: found["age"] for name, found in before.items()}
    report["kept"] = run(job, job["source"], out)
    after = look(job, out)
    report["after"] = {name: found["age"] for name, found in after.items()}
    report["hidden"] = [path.name for path in out.iterdir() if path.name.startswith(".")]
    report["problems"] = [p for f in (*before.values(), *after.values()) for p in f["problems"]]
    return report


def look(job, out):
    """Every visible thing in the folder: of which source it is, and what is wrong with it."""
    sources = {"new": open_checkpoint(job["source"])}
    if job["older"]:
        sources["old"] = open_checkpoint(job["older"])
    found = {}
    for path in out.iterdir() if out.exists() else ():
        if path.name.startswith("."):
            continue
        manifest = read_manifest(path)
        ages = [a for a, s in sources.items() if manifest and manifest.fingerprint == s.fingerprint]
        age = ages[0] if ages else "neither"
        problems = verify(path, sources[age], lambda _: None).problems if ages else ["no manifest"]
        found[path.name] = {"age": age, "problems": list(problems)}
    return found


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def forked(work, kill_after_s=None):
    """Do it in a child; its answer, or None if it was killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader) as pipe:  # a quantiser that outlives its parent does not hold it open
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else None


def prepare(job, out, template):
    shutil.rmtree(out, ignore_errors=True)
    if job["older"]:
        shutil.copytree(template, out)


def main():
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    template, out = folder / "template", folder / "out"
    if job["older"]:
        forked(lambda: run(job, job["older"], template))
    prepare(job, out, template)
    begin = time.monotonic()
    total = forked(lambda: converter(job, out, 0))
    took_s = time.monotonic() - begin
    print(json.dumps({"steps": total, "took_s": took_s}), flush=True)
    last_steps = range(1, total + 1, job["stride"])
    attempts = [{"last_step": step} for step in last_steps]
    attempts += [{"after_s": fraction * took_s} for fraction in job["times"]]
    for attempt in attempts:
        prepare(job, out, template)
        step, after_s = attempt.get("last_step", 0), attempt.get("after_s")
        killed = forked(lambda step=step: converter(job, out, step), after_s) is None
        report = forked(lambda: inspect(job, out))
        print(json.dumps({**attempt, "killed": killed, "report": report}), flush=True)


if __name__ == "__main__":
    main()
