"""Options of `edge completion`."""

import argparse

from edge.cli.options import shared

SHELLS = ("bash", "zsh", "fish")


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser(
        'bash, in ~/.bashrc: eval "$(edge completion bash)"; zsh: edge completion zsh > _edge in a '
        "folder of fpath; fish: edge completion fish > ~/.config/fish/completions/edge.fish"
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return parser
