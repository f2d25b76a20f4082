"""Engines that run an artefact: our MLX network, mlx-lm's, or llama.cpp."""
