"""Kill a conversion before every step, and report what is left.

`python -m tests.support.killed_converter JOB` with a JSON job prints one JSON report per kill. The
process imports everything once and forks for every attempt. A step is an audit event of Python
about the output folder (open, mkdir, rename, remove, ...).
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from edge.convert.artefacts.manifest import read_manifest
from edge.convert.checkpoint import open_checkpoint
from tests.support.conversions import check, make

TOUCHES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def run(job, source, out):
    """Convert; names of what was kept."""
    made = make(source, out, *job["artefacts"], force=job["older"] is not None)
    return [artefact.path.name for artefact in made if artefact.kept]


def converter(job, out, last_step):
    """Convert, killed before step `last_step`; the number of steps if it was not reached."""
    steps = 0

    def hook(event, args):
        nonlocal steps
        if event in TOUCHES or (event == "open" and str(args[0]).startswith(str(out))):
            steps += 1
            if steps == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run(job, job["source"], out)
    return steps


def inspect(job, out):
    """The folder before and after another run, and what that run kept."""
    visible = states(job, out)
    return {"visible": visible, "kept": run(job, job["source"], out), "after": states(job, out)}


def states(job, out):
    """By name: the source that a whole artefact was made of, or hidden, or broken."""
    found = {}
    for path in out.iterdir() if out.exists() else ():
        found[path.name] = "hidden" if path.name.startswith(".") else "broken"
        manifest = read_manifest(path)
        for age in ("source", "older"):
            fingerprint = job[age] and open_checkpoint(job[age]).fingerprint
            if manifest and manifest.fingerprint == fingerprint:
                found[path.name] = " ".join(check(path, job[age]).problems) or age
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
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else None


def main():
    job = json.loads(sys.argv[1])
    template, out = Path(job["folder"], "template"), Path(job["folder"], "out")
    template.mkdir()
    if job["older"]:
        forked(lambda: run(job, job["older"], template))

    def attempt(last_step):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(template, out)
        return forked(lambda: converter(job, out, last_step))

    for step in range(1, attempt(0) + 1):
        killed = attempt(step) is None
        print(json.dumps({"killed": killed, **forked(lambda: inspect(job, out))}), flush=True)


if __name__ == "__main__":
    main()
