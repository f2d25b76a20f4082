"""MLX directories and GGUF files, by recipe."""
