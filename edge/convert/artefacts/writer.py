"""What every artefact writer offers to the one pass over a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edge.convert.artefacts.block import Block
from edge.convert.sources.weights import Array, Packed

Encoded = Sequence[Array]


class ArtefactWriter(Protocol):
    """Takes the tensors of a checkpoint in the order of `expected_shapes`."""

    def takes_packed(self, name: str) -> bool:
        """Whether it wants the tensor as the source has it quantised."""
        ...

    def encode(self, block: Block) -> Encoded:
        """Rows in this artefact's form. Runs in any thread and changes nothing."""
        ...

    def append(self, name: str, encoded: Encoded) -> None:
        """Write encoded rows, which come in order."""
        ...

    def append_packed(self, name: str, packed: Packed) -> None:
        """Write a whole tensor as the source has it."""
        ...

    def end_tensor(self, name: str) -> None:
        """All rows of the tensor have come."""
        ...

    def finish(self) -> dict[str, str]:
        """Complete the artefact but for its manifest; digests of its files by name."""
        ...

    def notes(self) -> list[str]:
        """Sentences on what the user should know of the result."""
        ...

    def close(self) -> None:
        """Let go of open files after a failure."""
        ...
