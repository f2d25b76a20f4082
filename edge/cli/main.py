"""The `edge` command: runs a subcommand and prints its errors as one sentence."""

import argparse
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module

import edge
from edge.errors import EdgeError, printable
from edge.stdout import end_stdout, prepare_streams, write_stdout

# NAME: --help imports `edge.cli.options.NAME`, a run `edge.cli.NAME` too.
COMMANDS = {
    "convert": "Convert a StableLM checkpoint to MLX and GGUF.",
    "bench": "Benchmark a model's artefacts on this machine.",
    "chat": "Chat with a model, or answer a single prompt.",
    "complete": "Complete code at a cursor (fill in the middle).",
    "serve": "Serve completions and chats to editors over HTTP.",
    "eval": "Measure perplexity, KL divergence and infilling of artefacts.",
    "report": "Make tables, plots and an HTML page from profiles.",
    "power": "Measure the energy of a command or of a time span.",
    "doctor": "Check what can be measured on this machine and what is missing.",
    "completion": "Print a script that completes edge's words in bash, zsh or fish.",
}
USAGE = "usage: edge [-h] [--version] COMMAND ..."
INTERRUPTED = 130
RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # of a process that mlx.launch or mpirun started
GRACE_S = 3.0  # within which mlx.launch ends a process after another
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_HOME = "/nonexistent"  # as in Debian's /etc/passwd


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand. Exit code: 0, 1 for a failure, 2 for wrong arguments, 130 for Ctrl-C."""
    first, *words = (sys.argv[1:] if argv is None else list(argv)) or [""]
    if first in COMMANDS:
        prog = f"edge {first}"
        if "MLX_RANK" in os.environ:  # of mlx.launch, which mixes what its processes print
            prog += f" on {os.uname().nodename}"
        return _guarded(prog, lambda: _run(first, f"edge {first}", words))
    return _guarded("edge", lambda: _answer(first))


def run_one(name: str, prog: str) -> int:
    """Run one subcommand as a script of its own (`convert.py`, `bench.py`)."""
    return _guarded(prog, lambda: _run(name, prog, sys.argv[1:]))


def parser_of(name: str, prog: str | None = None) -> argparse.ArgumentParser:
    """Parser of a subcommand with its name and description."""
    parser: argparse.ArgumentParser = import_module(f"edge.cli.options.{name}").parser()
    parser.prog = prog or f"edge {name}"
    parser.description = COMMANDS[name]
    parser.set_defaults(command=name)
    return parser


def _run(name: str, prog: str, words: Sequence[str]) -> int:
    parser = parser_of(name, prog)
    try:
        args = _parsed(parser, words)
    except SystemExit as end:  # it has printed the help, or what is wrong
        return int(end.code or 0)
    if any(variable in os.environ for variable in RANKS):
        run = import_module("edge.cli.together").run
        together: int = run(name, args, lambda: _checked(name, args, parser))
        return together
    return _checked(name, args, parser)


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """As `parse_args`; of several processes the first says what it finds, the others what only
    they find.
    """
    if all(os.environ.get(variable, "0") == "0" for variable in RANKS):
        return parser.parse_args(words)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return parser.parse_args(words)
    except SystemExit as end:
        if end.code:
            time.sleep(GRACE_S)  # this process is ended if the first finds the same
            sys.stderr.write(said.getvalue())
        raise


def _checked(name: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if check := getattr(import_module(f"edge.cli.options.{name}"), "check", None):
        check(args)
    import_module("edge.cli.options.shared").check_inputs(args, parser)
    code: int = import_module(f"edge.cli.{name}").run(args)
    return code


def _answer(first: str) -> int:
    """Help, the version, or what is wrong with the name of a command."""
    if first in ("-h", "--help"):
        print(_help())
    elif first == "--version":
        print(f"edge {edge.__version__}")
    else:
        wrong = f"unknown command {first!r}" if first else "COMMAND is missing"
        choice = ", ".join(COMMANDS)
        print(f"edge: {wrong}; choose from {choice}; see `edge --help`", file=sys.stderr)
        return 2
    return 0


def _guarded(prog: str, work: Callable[[], int]) -> int:
    """Exit code of the work, whose errors are printed as one sentence."""
    if os.path.expanduser("~") == "~":  # noqa: PTH111  no HOME, and an unknown user
        os.environ["HOME"] = NO_HOME
    try:
        prepare_streams()
        code = work()
        write_stdout("")  # while an error can still be handled
        return code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # `edge bench | head`
        code = 1
    except (EdgeError, OSError, MemoryError, ImportError) as error:
        print(f"{prog}: {_sentence(error)}", file=sys.stderr)
        code = 1
    end_stdout()
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, EdgeError):
        return str(error)
    limit = "choose a smaller model, or raise the limit that `ulimit -v` shows"
    if isinstance(error, MemoryError):
        return f"there is not enough memory; {limit}."
    last_line = printable(str(error).strip().rpartition("\n")[2])
    if isinstance(error, ImportError):
        return f"a library cannot be loaded ({last_line}); install edge again, or {limit}."
    if isinstance(error, OSError) and error.filename is None and error.errno in FULL:
        return (
            f"stdout cannot be written ({error.strerror}); free some space or direct it elsewhere."
        )
    if isinstance(error, PermissionError) and error.filename:
        where = printable(str(error.filename))
        return f"{where} cannot be used ({error.strerror}); check its permissions."
    return f"{last_line}; check the disk's free space and the permissions."


def _help() -> str:
    rows = "\n".join(f"  {name:12}{summary}" for name, summary in COMMANDS.items())
    return (
        f"{USAGE}\n\nRun, convert and profile Stable Code 3B and the StableLM family.\n\n"
        f"commands:\n{rows}\n\n"
        "options:\n  -h, --help  show this help; edge COMMAND --help shows the command's options\n"
        "  --version   show the version"
    )
