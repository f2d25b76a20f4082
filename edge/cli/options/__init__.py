"""The options of each command: imported for `--help`, so nothing heavy is imported here."""
