"""The jobs of a run: every artefact or file on its engines under its workloads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge.bench.engines.engine import LLAMA_CPP, MLX, MLX_LM
from edge.bench.worker import Job
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.profile.profile import ModelInfo, Workload


@dataclass(frozen=True)
class Target:
    """An artefact or file to measure; `as_is` if edge has no checkpoint of it."""

    recipe: Recipe
    path: Path
    engines: tuple[str, ...]
    model: ModelInfo
    vocab_size: int
    context_tokens: int
    as_is: bool = False


def model_of(checkpoint: Checkpoint) -> ModelInfo:
    """A checkpoint as profiles describe it."""
    source = checkpoint.source
    return ModelInfo(
        name=source.name,
        source=source.origin,
        revision=source.revision,
        parameters=checkpoint.parameters,
        synthetic=source.synthetic,
    )


def artefact_targets(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], out: Path, peers: bool
) -> list[Target]:
    """The artefacts of a checkpoint in the folder `out`; with `peers` MLX's on mlx-lm too."""
    config, model = checkpoint.config, model_of(checkpoint)
    of_mlx = (MLX, MLX_LM) if peers else (MLX,)
    return [
        Target(
            recipe,
            recipe.path_in(out),
            of_mlx if recipe.is_mlx else (LLAMA_CPP,),
            model,
            config.vocab_size,
            config.max_position_embeddings,
        )
        for recipe in dict.fromkeys(recipes)
    ]


def plan_jobs(
    targets: Sequence[Target], workloads: Callable[[int, str], Sequence[Workload]], settings: Job
) -> list[tuple[Job, Target]]:
    """One job per target, engine and workload.

    `workloads` gets the context and the name of each model once; `settings` has the fields that
    all jobs share.
    """
    models = dict.fromkeys((target.context_tokens, target.model.name) for target in targets)
    of_models = {model: workloads(*model) for model in models}
    return [
        (
            replace(
                settings,
                engine=engine,
                path=str(target.path),
                workload=workload,
                vocab_size=target.vocab_size,
                as_is=target.as_is,
            ),
            target,
        )
        for target in targets
        for engine in target.engines
        for workload in of_models[target.context_tokens, target.model.name]
    ]
