"""Bytes on disk: safetensors, GGUF, GPTQ packing, JSON, text, atomic files."""
