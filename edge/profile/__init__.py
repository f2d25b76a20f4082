"""The profile of a device: written, read, checked."""
