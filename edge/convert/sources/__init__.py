"""Where weights come from: the hub, a directory, GPTQ, GGUF, random numbers."""
