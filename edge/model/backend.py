"""What MLX computes on."""

from typing import Literal

import mlx.core as mx

Backend = Literal["metal", "cuda", "cpu"]


def current_backend() -> Backend:
    if mx.default_device().type != mx.DeviceType.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def compiles(positions: int) -> bool:
    # On a CPU MLX computes a norm or a rotation as a dozen operations. For one position both are
    # compiled; a longer prompt gains nothing, and each length would be compiled separately.
    return positions == 1 and current_backend() == "cpu"
