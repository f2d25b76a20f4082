"""Tokens to text: decoding, sampling, stopping, detokenising, filling in the middle."""

# Marks the place of a middle in a text; here so that `--help` imports nothing heavy.
CURSOR = "<CURSOR>"
