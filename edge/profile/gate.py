"""The result of the correctness gate, as it is in a profile's row."""

import math
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from edge.profile.trial import Count, NotNegative

Positive = Annotated[float, Meta(gt=0)]


class Gate(Struct, frozen=True, kw_only=True):
    """The check of a row's logits: largest relative errors, and what rounding explains of them.

    `prompt_tokens` behind `depth` others, and tokens decoded there, were computed as they are timed
    and in small pieces; the logits at `positions` places were compared. `reference_error` is that
    of a short prompt against the artefact's weights in float32, its bound is None without a
    checkpoint. Every sequence of a batch was compared with the same tokens computed alone;
    `worst_sequence` is given if the worst error is of that. An error that is not finite is None.
    """

    prompt_tokens: Count
    depth: Count
    positions: Count
    worst_position: Count
    worst_error: NotNegative | None
    bound: Positive
    reference_error: NotNegative | None = None
    reference_bound: Positive | None = None
    worst_sequence: Count | UnsetType = UNSET

    @property
    def share(self) -> float:
        """The worst error as a share of its bound: up to 1 is rounding."""
        return math.inf if self.worst_error is None else self.worst_error / self.bound
