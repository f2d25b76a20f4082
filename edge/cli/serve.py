"""Serve a model to editors and other clients over HTTP."""

import argparse
import os
import sys
from pathlib import Path

import mlx.core as mx

from edge.cli.model_path import open_for, runnable
from edge.cli.options.serve import ARTEFACT, MOST_PARALLEL
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH, read_text
from edge.generate.batch import Batch
from edge.generate.decode import LlamaSource
from edge.model.follow import is_launched
from edge.model.memory import caches_that_fit
from edge.power.choose import choose_meter
from edge.serve.app import Access, listen, serve
from edge.serve.editors import blocks
from edge.serve.energy import EnergyMeter
from edge.serve.engine import ServedModel
from edge.serve.http import Service
from edge.serve.queue import Queue
from edge.stdout import write_stdout
from edge.text import size

KEY_VARIABLE = "EDGE_API_KEY"
ARTEFACT_NAMES = ("mlx-", "gguf-")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    access = Access(args.host, args.port, args.allow_host, args.cors, _key(args))
    access.check()
    path = runnable(args.model, args.command, ARTEFACT)
    if path.is_file() and (args.parallel or 1) > 1:
        raise EdgeError(
            f"--parallel is for MLX, and {path} is a GGUF file, which answers one request at a "
            f"time; leave it out."
        )
    if is_launched() and (args.parallel or 1) > 1:
        raise EdgeError(
            "over several devices requests are answered one at a time; leave out --parallel."
        )
    name = args.alias or _name(path)
    with listen(access) as listening:
        queue = Queue(lambda: _open(args, path, name), _energy(args), args.queue)
        queue.start()
        try:
            service = Service(queue, name, str(path), args.log_prompts)
            write_stdout(_greeting(service, access, listening.getsockname()[1]))
            serve(service, access, listening)
        finally:
            queue.close()
    return 0


def _open(args: argparse.Namespace, path: Path, name: str) -> ServedModel:
    model, tokenizer, need = open_for(args.command, path, args.kv_bits)
    if isinstance(model, LlamaSource):
        return ServedModel(name, model, tokenizer)
    assert need is not None
    wanted = 1 if is_launched() else args.parallel or MOST_PARALLEL
    places = caches_that_fit(need, wanted)
    if places < wanted:
        caches = f"{wanted} caches of {size(need.cache_bytes)}"
        print(
            f"edge serve: warning: the memory does not hold {caches} beside {path}; requests are "
            f"answered {f'{places} at a time' if places > 1 else 'one by one'}.",
            file=sys.stderr,
        )
    running_bytes = need.running_bytes + (places - 1) * need.cache_bytes
    batch = Batch(model, places, args.kv_bits)
    return ServedModel(name, batch, tokenizer, running_bytes, args.prefill_step)


def _energy(args: argparse.Namespace) -> EnergyMeter:
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    energy = EnergyMeter(choose_meter(args.power, ["GPU" if on_gpu else "CPU"]), args.power)
    if args.power != "none" and energy.reason:
        print(f"edge serve: warning: answers have no energy: {energy.reason}.", file=sys.stderr)
    return energy


def _key(args: argparse.Namespace) -> str | None:
    """The key of a file or of the environment; never of the command line, which all users see."""
    if args.api_key is not None:
        key, where = read_text(args.api_key).strip(), str(args.api_key)
    elif KEY_VARIABLE in os.environ:
        key, where = os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise EdgeError(f"{where} has no key of printable ASCII characters; write one there.")
    return key


def _name(path: Path) -> str:
    """demo; stable-code-3b of models/stable-code-3b/mlx-int4; else the file's or folder's name."""
    if path == DEMO_PATH:
        return "demo"
    if path.name.startswith(ARTEFACT_NAMES):
        return path.absolute().parent.name
    return path.stem if path.is_file() else path.name


def _greeting(service: Service, access: Access, port: int) -> str:
    # 0.0.0.0 is every address of this machine, but not one that can be asked.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(access.host, access.host)
    host = f"[{host}]" if ":" in host else host
    url = f"http://{host}:{port}"
    engine = service.queue.engine
    fim = "" if engine.fim else " · no infilling"
    base = " · no chat template" if engine.is_base else ""
    places = f" · {engine.places} at once" if engine.places > 1 else ""
    head = f"{url} · {service.name} · context {service.context_tokens}{places}{fim}{base}"
    return f"{head} · Ctrl-C ends\n\n{blocks(url, service.name, access.key is not None)}\n"
