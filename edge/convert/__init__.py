"""Checkpoints: find, read, validate, convert, verify."""
