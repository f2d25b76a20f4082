"""The training text of the demo: source files of permissively licensed packages.

    python tools/demo/corpus.py --packages DIR --out TEXT

DIR holds the packages of demo/sources.txt as the registries' own clients download them: wheels and
sdists (`pip download --no-deps`), `npm pack`, and Debian's librust-*-dev and golang-*
(`apt-get download`); other files in it are ignored. The standard library of the interpreter that
runs this file comes on top. TEXT gets one JSON line per file, {"name", "text"}, in LANGUAGE.jsonl
and, for the files that are held out by a hash of their name, in held_out/LANGUAGE.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SOURCES = Path(__file__).with_name("sources.txt")
HELD_OUT_PERCENT = 3
LANGUAGES = {
    ".py": "python", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript",
    ".ts": "typescript", ".tsx": "typescript", ".rs": "rust", ".c": "c", ".h": "c",
    ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp", ".go": "go", ".java": "java", ".sh": "shell",
    ".sql": "sql",
}  # fmt: skip
LEAST_BYTES, MOST_BYTES = 300, 100_000
# Of one package in one language, and of one language; the standard libraries are not capped.
PACKAGE_BYTES, STANDARD = 1_500_000, ("cpython", "golang")
LEFT_OUT = re.compile(
    r"(^|/)(dist|build|umd|cjs|esm|bundles?|min|node_modules|vendor|third_party|fixtures?|"
    r"locales?|i18n|testdata|encodings|pydoc_data|site-packages|idlelib/Icons|_vendor|"
    r"config-[^/]*|__generated__)(/|$)|[.-]min\.|\.bundle\.|_pb2\.py$|\.d\.[mc]?ts$|\.pb\.go$",
    re.IGNORECASE,
)
GENERATED = re.compile(r"generated (by|from|file|code)|do not edit|@generated", re.IGNORECASE)
LONGEST_LINE, MEAN_LINE = 300, 70
ARCHIVES = (".whl", ".deb", ".tgz", ".gz", ".zip")


def usable(text: str) -> bool:
    """Plain hand-written ASCII code, not minified and not a table."""
    lines = text.splitlines()
    return (
        text.isascii()
        and "\t\t\t\t\t\t" not in text
        and max(map(len, lines), default=0) <= LONGEST_LINE
        and len(text) / max(1, len(lines)) <= MEAN_LINE
        and not GENERATED.search(text[:2000])
        and sum(c.isdigit() for c in text) < len(text) * 0.15
    )


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's source files."""
    if path.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", path]
        data = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            yield from tar_members(archive)
    elif path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if PurePosixPath(info.filename).suffix in LANGUAGES and info.file_size < MOST_BYTES:
                    yield info.filename, archive.read(info)
    else:
        with tarfile.open(path) as archive:
            yield from tar_members(archive)


def tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for info in archive:
        if info.isfile() and PurePosixPath(info.name).suffix in LANGUAGES:
            content = archive.extractfile(info) if info.size < MOST_BYTES else None
            if content is not None:
                yield info.name, content.read()


def standard_library() -> Iterator[tuple[str, bytes]]:
    """The running interpreter's library and headers."""
    paths = sysconfig.get_paths()
    for root, pattern in ((paths["stdlib"], "*.py"), (paths["include"], "*.h")):
        for path in sorted(Path(root).rglob(pattern)):
            if path.stat().st_size < MOST_BYTES:
                yield path.relative_to(root).as_posix(), path.read_bytes()


def package_name(path: Path) -> str:
    """The archive's package without version: golang-1.19-src is golang, as CPython's is cpython."""
    if path.suffix == ".deb":
        name = path.name.split("_")[0]
        return "golang" if re.fullmatch(r"golang-[\d.]+-src", name) else name
    return re.split(r"-\d", path.name)[0].replace("_", "-").lower()


def version_of(path: Path) -> str:
    if path.suffix == ".deb":
        return path.name.split("_")[1]
    found = re.search(r"-(\d[\w.]*?)(?=-|\.tar|\.tgz|\.zip|\.whl|$)", path.name)
    return found[1] if found else ""


def is_held_out(name: str) -> bool:
    """Split by a hash of the name: stable across machines and releases."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def listed() -> dict[str, str]:
    """Version by package of sources.txt."""
    lines = SOURCES.read_text().splitlines()[1:]
    return {name: version for _, name, version, *_ in map(str.split, lines)}


def packages_in(folder: Path) -> Iterator[tuple[str, Iterator[tuple[str, bytes]]]]:
    """The interpreter's library, then the listed packages: names and files."""
    yield "cpython", standard_library()
    missing = listed()
    missing.pop("cpython")
    for path in sorted(path for path in folder.rglob("*") if path.suffix in ARCHIVES):
        version = missing.pop(package_name(path), None)
        if version is not None:
            if version != version_of(path):
                print(f"{path.name} is not version {version}", file=sys.stderr)
            yield package_name(path), members(path)
    if missing:
        print(f"missing: {' '.join(missing)}", file=sys.stderr)


def write_corpus(packages: Path, out: Path) -> None:
    """All usable files, each text once."""
    (out / "held_out").mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    kept: dict[tuple[bool, str], list[str]] = defaultdict(list)
    total: Counter[str] = Counter()
    for package, files in packages_in(packages):
        counts: Counter[str] = Counter()
        for name, data in files:
            language = LANGUAGES[PurePosixPath(name).suffix]
            if LEFT_OUT.search(name) or not LEAST_BYTES <= len(data) <= MOST_BYTES:
                continue
            text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
            digest = hashlib.sha256(re.sub(r"\s+", "", text).encode()).hexdigest()
            full = package not in STANDARD and counts[language] > PACKAGE_BYTES
            if full or digest in seen or not usable(text):
                continue
            seen.add(digest)
            counts[language] += len(text)
            label = f"{package}/{name}"
            # The standard library's files are split as for the first demo.
            held_out = is_held_out(name if package == "cpython" else label)
            kept[held_out, language].append(json.dumps({"name": label, "text": text}))
        total.update(counts)
    for (held_out, language), lines in kept.items():
        folder = out / "held_out" if held_out else out
        (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n")
    print(dict(total))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_corpus(args.packages, args.out)


if __name__ == "__main__":
    main()
