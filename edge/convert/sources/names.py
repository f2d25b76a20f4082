"""Names of models as users type them; nothing is opened, so that a wrong name is told at once."""

import re
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.files import unreadable, user_path

# A published model that a package carries: SmolLM2-135M-Instruct, Apache-2.0, 98 MB.
DEMO, SMOLLM2 = "demo", "smollm2"
SYNTHETIC = "synthetic:"  # begins the name of random weights
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:.*)?")


def existing_path(model: str) -> Path | None:
    """The path if something is there; a leading ~ is the home directory."""
    path = user_path(model)
    try:
        return path if model and path.exists() else None  # Path("") is the current directory
    except PermissionError as error:
        raise unreadable(path, error) from None
    except (OSError, RuntimeError, ValueError):  # too long, unknown ~user, a zero byte
        return None


def check_model(model: str, revision: str | None = None) -> None:
    """Raise EdgeError for a path where nothing is, and for a name of no kind."""
    if model in (DEMO, SMOLLM2) or model.startswith(SYNTHETIC) or existing_path(model):
        return
    on_hub, is_path = HUB_ID.fullmatch(model), _looks_like_path(model)
    if on_hub and (on_hub[1] or revision or not is_path):
        return
    if is_path:
        hub = f"; if you mean the hub's, write {model}:main" if on_hub else ""
        raise EdgeError(f"{model} is missing; check the path{hub}.")
    raise EdgeError(
        f"there is no checkpoint {model!r}; give a directory, a GGUF file, 'demo', 'smollm2', "
        f"'synthetic:NAME' or a hub id such as stabilityai/stable-code-3b."
    )


def _looks_like_path(model: str) -> bool:
    if model.startswith((".", "/", "~")) or model.lower().endswith(".gguf"):
        return True
    return "/" in model and user_path(model).parent.is_dir()
