"""Quality of artefacts: perplexity, KL divergence and infilling, compared with a reference."""

# Defaults of `edge eval`, here so that `--help` imports nothing heavy.
WINDOW_TOKENS = 512
# At least eight windows: with the rows of Table 11 less than a minute on two CPU cores (the demo).
TOKENS, WINDOWS = 4096, 8
