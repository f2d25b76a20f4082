"""Quality of GGUF files as they are, of whatever model llama.cpp runs: nothing is converted."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from edge.convert.artefacts.content import check_name, gguf_precision
from edge.convert.artefacts.recipes import Recipe
from edge.convert.convert import Artefact
from edge.errors import EdgeError
from edge.formats.gguf import unsplit_name
from edge.llama_cpp.check import check_file
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import read_tokenizer
from edge.quality.corpus import Windows, windows_of
from edge.quality.score import GgufShape

# Positions of the session that reads the tokenizer.
FEW_TOKENS = 32


def open_files(
    paths: Sequence[Path], corpus: Path | None, window: int | None, tokens: int | None
) -> tuple[list[Artefact], list[int], Windows, GgufShape]:
    """The files, their numbers of weights, a corpus cut as by `windows_of`, the largest shape.

    An EdgeError if a file is broken, or if the tokenizers differ: then perplexities do not compare.
    """
    if len({unsplit_name(path) for path in paths}) < len(paths):
        raise EdgeError("two of the GGUF files have the same name; measure them one by one.")
    artefacts, windows, shapes, parameters = [], [], [], []
    for path in paths:
        check_name(path)
        recipe = Recipe(unsplit_name(path), "GGUF", gguf_precision(check_file(path)))
        artefacts.append(Artefact(recipe, path, kept=True))
        with contextlib.closing(LlamaSession(path, FEW_TOKENS, 1)) as session:
            limit, tokenizer = session.trained_tokens, read_tokenizer(session)
            windows.append(windows_of(limit, tokenizer, corpus, window, tokens))
            shapes.append(GgufShape(session.vocab_size, session.kv_elements_per_position))
            parameters.append(session.parameters)
        if windows[-1].digests != windows[0].digests:
            raise EdgeError(
                f"{path} and {paths[0]} have different tokenizers, so their perplexities do not "
                f"compare; measure them one by one."
            )
    largest = max(shapes, key=lambda shape: shape.cache_elements)
    return artefacts, parameters, windows[0], largest
