"""The roofline of decoding: every token reads all weights and its cache once."""

from edge.device.chips import NVIDIA_CACHE_BYTES
from edge.device.describe import Device


def ceiling_tok_s(bytes_per_token: float, bandwidth_bytes_s: float) -> float:
    """Tokens per second if memory were read at full bandwidth and nothing else took time."""
    if bytes_per_token <= 0 or bandwidth_bytes_s <= 0:
        raise ValueError("a ceiling needs bytes and a bandwidth above 0")
    return bandwidth_bytes_s / bytes_per_token


def bandwidth_fraction(
    device: Device, on_gpu: bool, decode_tok_s: float, bytes_per_token: float
) -> tuple[float | None, str | None]:
    """How much of the ceiling a decode rate reaches; a sentence where it is not known or above 1.

    What fits in the last-level cache is not read from memory again: it has no ceiling.
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
    reached = decode_tok_s / ceiling_tok_s(bytes_per_token, bandwidth.bytes_s)
    if reached <= 1:
        return reached, None
    return reached, (
        f"decode reads {decode_tok_s * bytes_per_token / 1e9:.1f} GB/s, {reached:.0%} of the "
        f"{bandwidth.gb_s:.1f} GB/s that memory can do: check --bandwidth-gb-s and run again"
    )


def on_gpu(engine_device: str, gpu_name: str | None) -> bool:
    """From an engine's word for its device: llama.cpp's is GPU, MLX's the device's name."""
    return engine_device == "GPU" or bool(gpu_name and gpu_name in engine_device)
