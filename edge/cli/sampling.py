"""How tokens are chosen, from the options."""

from __future__ import annotations

import argparse

from edge.generate.sampling import Sampling


def sampling_from(args: argparse.Namespace) -> Sampling:
    """Settings from the options of `add_sampling`.

    Raises:
        EdgeError: a value outside its range.
    """
    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
