"""The machine: chip, memory, bandwidth, state."""
