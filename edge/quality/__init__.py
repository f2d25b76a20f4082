"""Quality of a precision: perplexity, KL divergence and middles against a reference."""

# Defaults of `edge eval`, here so that `--help` imports nothing heavy.
WINDOW_TOKENS = 512
# Eight windows: less than a minute for Table 11's rows of the demo on two CPU cores.
TOKENS, WINDOWS = 4096, 8
