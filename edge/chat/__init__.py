"""Talking to a model at a terminal: input, commands, printing, the loop."""
