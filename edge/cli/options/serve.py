"""Options of `edge serve`."""

import argparse

from edge.cli.options import shared

ARTEFACT = "mlx-int4"
PORT = 8012  # llama.vim's default
MOST_PARALLEL = 4  # llama-server's; an editor with three requests under way leaves one to another


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    meaning = shared.model_help(ARTEFACT)
    shared.add_model(parser, "model", nargs="?", default="demo", help=meaning)
    meaning = "name of the model for clients (default: its own)"
    parser.add_argument("--alias", metavar="NAME", help=meaning)
    address = parser.add_argument_group("address")
    meaning = "address to listen at; beyond this machine it needs a key"
    address.add_argument("--host", default="127.0.0.1", help=meaning)
    kind = shared.number(0, 65535, "a port from 0, any free one, to 65535", int)
    address.add_argument("--port", metavar="N", type=kind, default=PORT, help="port to listen at")
    access = parser.add_argument_group("access")
    meaning = "file with the key that clients must send (default: that in EDGE_API_KEY, if any)"
    shared.add_input(access, "--api-key", metavar="FILE", help=meaning)
    meaning = "other names of this machine that clients may use"
    access.add_argument(
        "--allow-host", metavar="NAME", nargs="+", action="extend", default=[], help=meaning
    )
    meaning = "websites that may ask, such as https://example.org; * for all"
    access.add_argument(
        "--cors", metavar="ORIGIN", nargs="+", action="extend", default=[], help=meaning
    )
    running = parser.add_argument_group("running")
    meaning = "requests that may wait; more are refused with status 503"
    shared.add_count(running, "--queue", default=64, help=meaning)
    meaning = (
        "requests that are answered at once, fewer where their caches do not fit into memory; a "
        f"GGUF file answers one at a time (default: {MOST_PARALLEL})"
    )
    shared.add_count(running, "--parallel", help=meaning)
    meaning = "tokens of a prompt that are computed before the other answers get their next token"
    shared.add_count(running, "--prefill-step", default=512, help=meaning)
    shared.add_kv_bits(running)
    shared.add_power(running, "--power", "auto")
    meaning = "write what clients send to the log"
    running.add_argument("--log-prompts", action="store_true", help=meaning)
    return parser
