"""What `edge report --check` looks for, one file per kind of fault."""
