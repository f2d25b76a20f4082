"""Open a checkpoint's directory: which of its files are used, and that each may be.

Nothing in it is trusted: no pickle is opened, no code is run or copied, and no name
or link may lead out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge.convert.sources.companions import INDEX, inside, read_companions
from edge.convert.sources.gptq import GptqWeights, is_gptq, read_gptq_settings
from edge.convert.sources.tokenizer_file import check_tokenizer
from edge.convert.sources.weights import Array, NeverPacked, Opened, Shape
from edge.errors import EdgeError
from edge.formats.files import read_json_object
from edge.formats.safetensors import SafetensorsFile
from edge.model.config import ModelConfig
from edge.model.tensors import check_count

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class PlainWeights(NeverPacked):
    """Unquantised tensors of one or more safetensors files.

    Raises:
        EdgeError: two files hold a tensor of one name, or one holds no floats.
    """

    def __init__(self, files: tuple[SafetensorsFile, ...]):
        self._file_of = file_of_each(files)
        for name, file in self._file_of.items():
            file.check_is_float(name)
        self.files = tuple(file.path for file in files)
        self.shapes: Mapping[str, Shape] = {
            name: file.entries[name].shape for name, file in self._file_of.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows of a tensor, bfloat16 widened to float32."""
        return self._file_of[name].read(name, start, stop)


def file_of_each(files: tuple[SafetensorsFile, ...]) -> dict[str, SafetensorsFile]:
    """Every tensor's file.

    Raises:
        EdgeError: two files hold a tensor of one name.
    """
    found: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file.entries:
            if name in found:
                raise EdgeError(
                    f"tensor {name} is in {found[name].path} and in {file.path}; "
                    f"keep the files of one checkpoint only."
                )
            found[name] = file
    return found


def open_directory(path: Path) -> Opened:
    """Read what a directory holds.

    Raises:
        EdgeError: a file is missing, broken, or one that must not be opened.
    """
    config_file = inside(path, "config.json")
    raw = read_json_object(config_file)
    config = ModelConfig.from_dict(raw, str(config_file))
    files = tuple(SafetensorsFile(inside(path, name)) for name in weight_files(path))
    check_count(config, len(file_of_each(files)), str(path))
    companions = read_companions(path)
    check_tokenizer(companions["tokenizer.json"], config.vocab_size, str(path / "tokenizer.json"))
    if is_gptq(raw, path):
        gptq = GptqWeights(files, read_gptq_settings(raw, path), config)
        return Opened(config, gptq, companions, gptq.warnings)
    if "quantization" in raw:  # MLX's own key
        from edge.convert.sources.mlx import MlxWeights  # here: MLX takes a while to load

        return Opened(config, MlxWeights(files, config), companions)
    if raw.get("quantization_config"):
        raise EdgeError(
            f"{config_file} describes a quantised checkpoint that is neither GPTQ nor MLX; "
            f"convert from the unquantised one."
        )
    return Opened(config, PlainWeights(files), companions)


def weight_files(path: Path) -> list[str]:
    """Names of the safetensors files that make up the checkpoint.

    Raises:
        EdgeError: there is none, or the index is broken or points elsewhere.
    """
    index = path / INDEX
    if index.exists() or index.is_symlink():  # one that leads nowhere is no reason to guess
        names = read_json_object(inside(path, INDEX)).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise EdgeError(f"{index} has no weight_map; download it again.")
        if names:
            return [_plain_name(name, index) for name in sorted(set(names.values()))]
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if not found:
        raise _without_weights(path)
    return found


def _plain_name(name: str, index: Path) -> str:
    if Path(name).name != name or not name.endswith(".safetensors") or not name.isprintable():
        raise EdgeError(f"{index} points outside its directory ({name!r}); do not use it.")
    return name


def _without_weights(path: Path) -> EdgeError:
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        return EdgeError(
            f"{path} holds its weights only as {pickles[0]}, a pickle, and opening a pickle can "
            f"run any code it contains, so edge never does; choose a checkpoint in safetensors "
            f"form."
        )
    return EdgeError(f"{path} holds no *.safetensors; download the checkpoint again.")
