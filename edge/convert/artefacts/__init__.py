"""What is made of them: MLX directories and GGUF files, by recipe."""
