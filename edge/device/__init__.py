"""This machine: chip, memory, bandwidth, state."""
