"""Weights on disk: find, read, validate, convert, write."""
