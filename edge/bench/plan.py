"""Targets of a run: artefacts of a checkpoint, files as they are, or a server; and its jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.bench.engines.engine import LLAMA_CPP, MLX, MLX_LM, SERVER
from edge.bench.server import LOCAL, REMOTE, choose_model, is_local, server_url, short_name
from edge.bench.worker import Job
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact
from edge.convert.targets import bits_per_weight, file_bytes
from edge.profile.profile import ModelInfo, Workload

# Context of a model that names none, as networks without attention.
UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class Target:
    """An artefact, file or served model, and the engines to measure it on.

    `as_is` is a file of which edge has no checkpoint. For a server `path` is its address and
    `served` its name for the model. Sizes are None where they are not known (yet), `notes` say
    what the conversion lost or changed.
    """

    recipe: Recipe
    path: str
    engines: tuple[str, ...]
    model: ModelInfo
    vocab_size: int = 0
    context_tokens: int = UNLIMITED
    as_is: bool = False
    served: str = ""
    file_bytes: int | None = None
    bits_per_weight: float | None = None
    notes: tuple[str, ...] = ()

    def made(self, artefact: Artefact) -> "Target":
        bits = bits_per_weight(artefact.path, self.model.parameters)
        size = file_bytes(artefact.path)
        return replace(self, file_bytes=size, bits_per_weight=bits, notes=artefact.notes)


def artefact_targets(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], out: Path, peers: bool
) -> list[Target]:
    """The artefacts of a checkpoint in the folder `out`; with `peers` MLX's on mlx-lm too."""
    source, config = checkpoint.source, checkpoint.config
    model = ModelInfo(
        source.name, source.origin, source.revision, checkpoint.parameters, source.synthetic
    )
    of_mlx = (MLX, MLX_LM) if peers else (MLX,)
    return [
        Target(
            recipe,
            str(recipe.path_in(out)),
            of_mlx if recipe.is_mlx else (LLAMA_CPP,),
            model,
            config.vocab_size,
            config.max_position_embeddings,
        )
        for recipe in dict.fromkeys(recipes)
    ]


def served_target(address: str, name: str | None, warn: Callable[[str], None]) -> Target:
    """The model of a running server: `name`, or the only one that it lists."""
    url = server_url(address)
    found = choose_model(url, name, warn)
    model = ModelInfo(short_name(found), LOCAL if is_local(url) else REMOTE)
    return Target(Recipe(model.name, "HTTP", "as served"), url, (SERVER,), model, served=found)


def plan_jobs(
    targets: Sequence[Target],
    workloads: Callable[[int, str], Sequence[Workload]],
    **settings: Any,
) -> list[tuple[Job, Target]]:
    """One job per target, engine and workload.

    `workloads` gets the context and the name of each model once; `settings` are the fields that
    all jobs share.
    """
    models = dict.fromkeys((target.context_tokens, target.model.name) for target in targets)
    of_models = {model: workloads(*model) for model in models}
    return [
        (
            Job(
                engine=engine,
                path=target.path,
                workload=workload,
                vocab_size=target.vocab_size,
                as_is=target.as_is,
                served=target.served,
                longest=target.context_tokens,
                **settings,
            ),
            target,
        )
        for target in targets
        for engine in target.engines
        for workload in of_models[target.context_tokens, target.model.name]
    ]
