"""The tokenizer of a model directory, read without transformers.

Importing transformers takes 1.5 s, most of the time of a short completion. Here the `tokenizers`
package and the keys of the small files are read as AutoTokenizer reads them; ids and text are the
same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import open_file, read_json_object, read_small_file
from edge.formats.folder import TOKENIZER_FILES, inside
from edge.tokenizer.chat_template import render_chat_template

TOKENIZER, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
# In the order in which transformers adds the missing ones to the vocabulary.
_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPECIAL_TOKENS = tuple(f"{kind}_token" for kind in _KINDS)
# transformers does not use the tokenizer.json of these classes but builds its own from its parts.
REBUILT = ("LlamaTokenizer", "CodeLlamaTokenizer")
# Added tokens such as <fim_middle>, <|im_end|>, <fim-pad>, ▁<PRE> or DeepSeek's, which has wide
# bars, unlike runs of spaces.
MARKUP = re.compile("▁?<[|\uff5c]?[\\w▁-]+[|\uff5c]?>")
# SentencePiece's space, and a sign that merges with nothing, which Code Llama's repository puts
# before a text that must not get a space.
SPACE, SIGN = "▁", "☺"
SURROGATE = re.compile("[\ud800-\udfff]")
OTHER_TOKENIZER = "get its tokenizer.json again, or choose another model"


class Tokenizer:
    """Text to ids and back, with the methods of transformers' tokenizers that mlx-lm uses.

    `backend` is a `tokenizers.Tokenizer` or llama.cpp's `Vocabulary`; `special_tokens` has the
    text of `bos_token`, ....
    """

    def __init__(
        self, backend: Any, special_tokens: Mapping[str, str], chat_template: str | None = None
    ):
        self.backend_tokenizer = backend
        self.special_tokens_map = dict(special_tokens)
        self.chat_template = chat_template
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        self.bos_token_id = self.convert_tokens_to_ids(self.bos_token)
        self.eos_token_id = self.convert_tokens_to_ids(self.eos_token)
        self.eos_token_ids = set() if self.eos_token_id is None else {self.eos_token_id}

    @classmethod
    def load(cls, path: Path, network: Mapping[str, Any] | None = None) -> Tokenizer:
        """Reads the tokenizer of a model directory; `network` is its config.json if known.

        Raises an EdgeError if a file is missing or broken.
        """
        files = [inside(path, name) for name in TOKENIZER_FILES]
        if not any((path / name).exists() for name in (TOKENIZER, SENTENCEPIECE)):
            raise EdgeError(
                f"{path} has no {TOKENIZER} and no {SENTENCEPIECE}; convert the model again."
            )
        with library_errors(f"{path}: the tokenizer cannot be read", "convert it again"):
            tokenizer = cls(*(_read(path) or _read_by_transformers(path, files)))
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.eos_token_ids.update(_eos_ids(path, network))
            return tokenizer

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; names of special tokens become these tokens.

        `add_special_tokens` adds BOS or EOS if the tokenizer is set up so.
        """
        return _encode(self.backend_tokenizer, text, add_special_tokens)

    def decode(
        self,
        ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of ids; unknown ids are skipped, those beyond 32 bits raise an OverflowError.

        `clean_up_tokenization_spaces` is ignored, as in transformers for BPE.
        """
        ids = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        with library_errors("the model's tokenizer cannot decode its tokens", OTHER_TOKENIZER):
            found = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return str(found)

    def convert_tokens_to_ids(self, name: str | None) -> int | None:
        """Id of a token by its name; None for an unknown name."""
        return None if name is None else self.backend_tokenizer.token_to_id(name)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """Name of a token; None for an unknown id."""
        name: str | None = self.backend_tokenizer.id_to_token(token_id)
        return name

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """Messages with `role` and `content` in the model's chat format, as text or ids.

        `variables` are the template's, such as `tools`.
        """
        if self.chat_template is None:
            raise EdgeError("the model has no chat template, so it cannot chat; complete instead.")
        variables = {**self.special_tokens_map, **variables}
        variables["add_generation_prompt"] = add_generation_prompt
        text = render_chat_template(self.chat_template, messages, **variables)
        return self.encode(text, add_special_tokens=False) if tokenize else text


@contextmanager
def library_errors(what: str, remedy: str) -> Iterator[None]:
    """Turns errors of the tokenizers library and of transformers into an EdgeError.

    For files that the library does not check it panics: it raises a BaseException, and prints
    something about its source code on stderr, which is discarded.
    """
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    except (EdgeError, KeyboardInterrupt, MemoryError, OverflowError):
        raise
    except BaseException as error:
        raise EdgeError(f"{what} ({error!r}); {remedy}.") from None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def _encode(backend: Any, text: str, add_special_tokens: bool = False) -> list[int]:
    if SURROGATE.search(text):
        raise EdgeError(
            "the text has half a surrogate pair, which is not a character; read it as UTF-8."
        )
    with library_errors("the model's tokenizer cannot encode the text", OTHER_TOKENIZER):
        return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)


# A `tokenizers.Tokenizer`, the texts of the special tokens, a chat template.
Parts = tuple[Any, dict[str, str], str | None]


def _read(path: Path) -> Parts | None:
    """Parts read without transformers; None if transformers would rebuild the tokenizer."""
    from tokenizers import Tokenizer as Backend

    config, file = _optional(path / "tokenizer_config.json"), path / TOKENIZER
    if not file.exists():
        return None
    backend = Backend.from_buffer(read_small_file(file))
    # It does not rebuild byte-level ones: Llama 3 uses the class name of Llama 2.
    if str(config.get("tokenizer_class")).removesuffix("Fast") in REBUILT:
        parts = (backend.pre_tokenizer, backend.decoder)
        if not any(part and b"ByteLevel" in part.__getstate__() for part in parts):
            return None
    names = _names(config)
    if "added_tokens_decoder" not in config:
        names |= _names(_optional(path / "special_tokens_map.json"))
    _add_missing(backend, config, names)
    template = path / "chat_template.jinja"  # overrides the config's
    if template.exists():
        text = read_small_file(template).decode()
        return backend, names, text.replace("\r\n", "\n").replace("\r", "\n")
    return backend, names, _only_template(config.get("chat_template"))


def _read_by_transformers(path: Path, files: Sequence[Path]) -> Parts:
    """Parts of SentencePiece models, and of tokenizers that transformers rebuilds."""
    for file in filter(Path.exists, files):
        with open_file(file):  # an EdgeError for a pipe, for which transformers would wait
            pass
    from mlx_lm.utils import load_tokenizer

    found = load_tokenizer(path, {"trust_remote_code": False})
    names = {name: str(token) for name, token in found.special_tokens_map.items()}
    return found.backend_tokenizer, names, _only_template(found.chat_template)


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the special tokens in a config, by key."""
    found = {name: _text(config[name]) for name in SPECIAL_TOKENS if config.get(name) is not None}
    return {name: text for name, text in found.items() if text}


def _text(token: Any) -> str:
    """Text of a token that is given as text or as an object with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"a special token is {token!r}")
    return text


def _add_missing(backend: Any, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Adds tokens that tokenizer.json lacks; they get the next ids."""
    from tokenizers import AddedToken

    listed = config.get("added_tokens_decoder") or {}
    ordered = [token for _, token in sorted(listed.items(), key=lambda item: int(item[0]))]
    backend.add_tokens([AddedToken(**{**token, "content": _text(token)}) for token in ordered])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = extra.values() if isinstance(extra, dict) else extra
    special = dict.fromkeys(_text(token) for token in (*names.values(), *values))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([AddedToken(text, special=True) for text in special if text not in known])


def _eos_ids(path: Path, network: Mapping[str, Any] | None) -> list[int]:
    """EOS ids of generation_config.json, else of config.json, as in mlx-lm."""
    own = _optional(path / "config.json") if network is None else network
    for config in (_optional(path / "generation_config.json"), own):
        found = config.get("eos_token_id")
        found = found if isinstance(found, list) else [found]
        if ids := [i for i in found if type(i) is int and i >= 0]:
            return ids
    return []


def _only_template(found: Any) -> str | None:
    if isinstance(found, list):  # several templates with names
        found = {template["name"]: template["template"] for template in found}
    if isinstance(found, dict):
        found = found.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError("the chat template is not text")
    return found


def token_id(tokenizer: Any, name: str) -> int | None:
    """Id of a token by its name in any tokenizer; None for an unknown name."""
    found = tokenizer.convert_tokens_to_ids(name)
    # transformers returns the id of the unknown token, if there is one.
    if found is None or tokenizer.convert_ids_to_tokens(found) != name:
        return None
    return int(found)


def special_ids(backend: Any) -> frozenset[int]:
    """Ids of a `tokenizers.Tokenizer` that are not text, flagged as special or not."""
    added = backend.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special or MARKUP.fullmatch(token.content))


def bos_ids(backend: Any) -> tuple[int, ...]:
    """The ids that a `tokenizers.Tokenizer` puts before a text."""
    text, whole = (_encode(backend, "a", adds) for adds in (False, True))
    return tuple(whole[: whole.index(text[0])]) if text and text[0] in whole else ()


def adds_space(backend: Any) -> bool:
    """True for a `tokenizers.Tokenizer` that puts a space before a text, as SentencePiece does."""
    first = _encode(backend, SIGN)[:1]
    return any(backend.id_to_token(i).startswith(SPACE) for i in first)


def encode_text(backend: Any, text: str, begins: bool = True) -> list[int]:
    """Ids of text by a `tokenizers.Tokenizer`; names of special tokens are plain text.

    SentencePiece's space comes before a text only where it `begins`.
    """
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        ids = _encode_piece(backend, text, begins)
        control = special_ids(backend)
        if control.isdisjoint(ids):
            return ids
        # A name that the tokenizer does not flag as special is cut after its first character.
        names = sorted(filter(None, map(backend.id_to_token, control)))
        pattern = "|".join(f"(?={re.escape(name)})" for name in names if len(name) > 1)
        cuts = [match.start() + 1 for match in re.finditer(pattern, text)]
        pieces = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
        first, *rest = (_encode_piece(backend, p, begins and not i) for i, p in enumerate(pieces))
        return first + [i for ids in rest for i in ids]
    finally:
        backend.encode_special_tokens = before


def _encode_piece(backend: Any, text: str, begins: bool) -> list[int]:
    sign = SIGN if not begins and adds_space(backend) else ""
    return _encode(backend, sign + text)[len(_encode(backend, sign)) :]
