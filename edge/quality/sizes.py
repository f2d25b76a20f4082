"""How much is measured unless it is said otherwise; apart, for `--help` to import it alone."""

WINDOW_TOKENS = 512
# Eight windows: below a minute for Table 11's rows of the demo on two CPU cores, of which MLX
# uses one.
TOKENS, WINDOWS = 4096, 8
