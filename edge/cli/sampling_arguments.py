"""Arguments that say how tokens are chosen, for every command that generates text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.generate.sampling import Sampling


def add_sampling(
    parser: argparse.ArgumentParser, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> None:
    """Declare them with these defaults; their ranges are checked by `sampling_from`."""
    group = parser.add_argument_group("how tokens are chosen")
    group.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=temperature,
        help=f"0 takes the most probable token (default: {temperature:g})",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=top_p,
        help=f"of the best with this share (default: {top_p:g})",
    )
    group.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        default=top_k,
        help=f"of the best so many, 0 for all (default: {top_k})",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=float,
        default=0.0,
        help="of those with this share of the best one's probability",
    )
    group.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=float,
        help="above 1 makes recent tokens less likely, 1.1 slightly",
    )
    group.add_argument(
        "--seed", metavar="N", type=int, help="the same seed draws the same tokens again"
    )


def sampling_from(args: argparse.Namespace) -> Sampling:
    """What the arguments of `add_sampling` say.

    Raises:
        EdgeError: a value outside its range.
    """
    # Imported here so that --help stays free of MLX.
    from edge.generate.sampling import Sampling

    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
