"""One module per command: arguments in, printing out."""
