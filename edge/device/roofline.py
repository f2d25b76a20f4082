"""Roofline of decoding: every token reads all weights and its KV cache once."""

from edge.device.chips import NVIDIA_CACHE_BYTES
from edge.device.describe import Device


def bandwidth_fraction(
    device: Device, on_gpu: bool, decode_tok_s: float, bytes_per_token: float
) -> tuple[float | None, str | None]:
    """Decode rate over its ceiling; a reason where it is unknown or above 1.

    Bytes that fit in the last-level cache are not read from memory again, so have no ceiling.
    """
    bandwidth, cache_bytes = device.memory_bandwidth, device.cache_bytes
    if on_gpu and device.gpu_memory_bandwidth is not None:
        bandwidth, cache_bytes = device.gpu_memory_bandwidth, NVIDIA_CACHE_BYTES
    if bandwidth is None:
        return None, f"bandwidth_fraction: {'; '.join(device.remarks) or 'no bandwidth is known'}"
    if cache_bytes is not None and bytes_per_token <= cache_bytes:
        return None, (
            f"bandwidth_fraction: a token's {bytes_per_token / 1e6:.0f} MB fit in the cache of "
            f"{cache_bytes / 1e6:.0f} MB, so memory is no ceiling; use a larger model"
        )
    reached = decode_tok_s * bytes_per_token / (bandwidth.gb_s * 1e9)
    if reached <= 1:
        return reached, None
    return reached, (
        f"decode reads {decode_tok_s * bytes_per_token / 1e9:.1f} GB/s, {reached:.0%} of the "
        f"{bandwidth.gb_s:.1f} GB/s of the memory: check --bandwidth-gb-s and run again"
    )


def on_gpu(engine_device: str, gpu_name: str | None) -> bool:
    """True if an engine's device is the GPU: llama.cpp says GPU, MLX the GPU's name."""
    return engine_device == "GPU" or bool(gpu_name and gpu_name in engine_device)
