"""Kill the converter before every step, and look at what is left.

A process of its own that has imported everything and then forks for every attempt, so that an
attempt costs what the conversion costs. `python -m tests.support.killed_converter JOB` with a
JSON job prints one JSON report per attempt.

A step is what Python's audit events tell of the output folder (open, mkdir, rename, remove, ...),
and with `progress` each report of the converter.
"""

import json
import os
import shutil
import signal
import sys
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
    recipes = [RECIPES[name] for name in job["artefacts"]]
    options = Options(force=job["older"] is not None)
    made = convert(open_checkpoint(source), recipes, out, lambda *_: on_step(), options)
    return [artefact.path.name for artefact in made if artefact.kept]


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
    quantisers = [p for p in psutil.process_iter(["cmdline"]) if str(out) in str(p.info)]
    _, alive = psutil.wait_procs(quantisers, CHILD_END_S)
    report = {"alive": len([p for p in alive if p.status() != psutil.STATUS_ZOMBIE])}
    report["visible"] = look(job, out)
    report["kept"] = run(job, job["source"], out)
    report["after"] = look(job, out)
    return report


def look(job, out):
    """Everything in the folder, but hidden things before the next run: of which source it is."""
    found = {}
    for path in out.iterdir() if out.exists() else ():
        manifest = read_manifest(path)
        for age in ("source", "older"):
            checkpoint = job[age] and open_checkpoint(job[age])
            if checkpoint and manifest and manifest.fingerprint == checkpoint.fingerprint:
                problems = verify(path, checkpoint, lambda _: None).problems
                found[path.name] = " ".join(problems) or age
        found.setdefault(path.name, "hidden" if path.name.startswith(".") else "broken")
    return found


def forked(work):
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
    with os.fdopen(reader) as pipe:  # a quantiser that outlives its parent does not hold it open
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else None


def attempt(job, out, template, last_step):
    """Convert in a fresh folder up to a step: steps (None if killed)."""
    shutil.rmtree(out, ignore_errors=True)
    if job["older"]:
        shutil.copytree(template, out)
    return forked(lambda: converter(job, out, last_step))


def main():
    job = json.loads(sys.argv[1])
    template, out = Path(job["folder"], "template"), Path(job["folder"], "out")
    if job["older"]:
        forked(lambda: run(job, job["older"], template))
    total = attempt(job, out, template, 0)
    for step in range(1, total + 1, job["stride"]):
        killed = attempt(job, out, template, step) is None
        report = forked(lambda: inspect(job, out))
        print(json.dumps({"killed": killed, **report}), flush=True)


if __name__ == "__main__":
    main()
