"""Tokens to text: decoding, sampling, stopping, detokenising, filling in the middle."""
