def write_files(root, files):
    """Write a tree of files: path below `root` -> content, without its newline."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
