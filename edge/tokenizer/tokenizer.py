"""The tokenizer of a model directory, read without transformers.

transformers takes a second and a half to import, most of what a completion took. What language
models need of it is the `tokenizers` package and a few keys of small files, read here as its
AutoTokenizer reads them; ids and text are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import read_json_object, read_small_file

TOKENIZER, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
# In the order in which transformers adds those that the vocabulary lacks.
_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPECIAL_TOKENS = tuple(f"{kind}_token" for kind in _KINDS)
# transformers does not read these tokenizer.json as they are but builds its own from their parts.
REBUILT = ("LlamaTokenizer", "CodeLlamaTokenizer")
# An added token that looks like <fim_middle> or <|im_end|>, not like spaces.
MARKUP = re.compile(r"<\|?\w+\|?>")


class Tokenizer:
    """Text to ids and back, with the methods that mlx-lm asks of a tokenizer of transformers.

    Made of a `tokenizers.Tokenizer`, the text of each `bos_token`, `eos_token`, ... that there is,
    a chat template in Jinja, and ids that end a text beside the EOS token's.
    """

    def __init__(
        self,
        backend: Any,
        special_tokens: Mapping[str, str],
        chat_template: str | None = None,
        eos_ids: Iterable[int] = (),
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer = backend
        self.special_tokens_map = dict(special_tokens)
        self.chat_template = chat_template
        self.clean_up_tokenization_spaces = False
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eos_token_ids = {*eos_ids, *own}

    @classmethod
    def load(cls, path: Path, network: Mapping[str, Any] | None = None) -> Tokenizer:
        """Reads the tokenizer of a model directory; `network` is its config.json if that is read.

        An EdgeError where there is none, or one of its files is broken.
        """
        if not any((path / name).exists() for name in (TOKENIZER, SENTENCEPIECE)):
            raise EdgeError(
                f"{path} has no {TOKENIZER} and no {SENTENCEPIECE}; convert the model again."
            )
        eos_ids = _eos_ids(path, network)
        try:
            return cls(*(_read(path) or _read_by_transformers(path)), eos_ids)
        except EdgeError:
            raise
        except Exception as error:  # neither tokenizers nor transformers has classes for its own
            is_form = isinstance(error, AttributeError | LookupError | TypeError)
            reason = "a value has another form than transformers writes" if is_form else error
            raise EdgeError(
                f"{path}: the tokenizer cannot be read ({reason}); convert the checkpoint again."
            ) from None

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text."""
        return self.convert_tokens_to_ids(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the EOS token; `eos_token_ids` has all that end a text."""
        return self.convert_tokens_to_ids(self.eos_token)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def get_vocab(self) -> dict[str, int]:
        """Every token's id, added ones included."""
        return dict(self.backend_tokenizer.get_vocab())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text -> ids; names of special tokens in it become these tokens.

        With `add_special_tokens` BOS or EOS come with it, where the model has it so.
        """
        try:
            found = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise EdgeError(
                "the text has half a surrogate pair, which is not a character; read it as UTF-8."
            ) from None
        return list(found.ids)

    def decode(
        self,
        ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Ids -> text; unknown ids are nothing, those beyond 32 bits an OverflowError.

        `clean_up_tokenization_spaces` is ignored, as transformers does for BPE.
        """
        ids = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def convert_tokens_to_ids(self, name: str | None) -> int | None:
        """The id of a token by its name; None where the vocabulary lacks it."""
        return None if name is None else self.backend_tokenizer.token_to_id(name)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """The name of a token; None for an unknown id."""
        name: str | None = self.backend_tokenizer.id_to_token(token_id)
        return name

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        return_dict: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """Messages with `role` and `content` as the model was trained to read them.

        Ends with the beginning of an answer, or not; `tokenize` gives ids; `variables` are the
        template's, such as `tools`; mlx-lm passes `return_dict`, always False.
        """
        if self.chat_template is None:
            raise EdgeError("the model has no chat template, so it cannot chat; complete instead.")
        from edge.tokenizer.chat_template import render

        assert not return_dict, "text or ids only"
        variables["add_generation_prompt"] = add_generation_prompt
        text = render(self.chat_template, messages, **{**self.special_tokens_map, **variables})
        return self.encode(text, add_special_tokens=False) if tokenize else text


# The `tokenizers.Tokenizer` of a directory, its special tokens by their names, its chat template.
Parts = tuple[Any, dict[str, str], str | None]


def _read(path: Path) -> Parts | None:
    """Reads a directory without transformers; None where that would make something else of it."""
    from tokenizers import Tokenizer as Backend

    config, file = _optional(path / "tokenizer_config.json"), path / TOKENIZER
    if not file.exists():
        return None
    backend = Backend.from_buffer(read_small_file(file))
    # Byte-level ones it leaves alone, which Llama 3 calls by Llama 2's name.
    if str(config.get("tokenizer_class")).removesuffix("Fast") in REBUILT:
        parts = (backend.pre_tokenizer, backend.decoder)
        if not any(part and b"ByteLevel" in part.__getstate__() for part in parts):
            return None
    names = _names(config)
    if "added_tokens_decoder" not in config:
        names |= _names(_optional(path / "special_tokens_map.json"))
    _add_missing(backend, config, names)
    template = path / "chat_template.jinja"  # wins over the config's
    if template.exists():
        text = read_small_file(template).decode()
        return backend, names, text.replace("\r\n", "\n").replace("\r", "\n")
    return backend, names, _only_template(config.get("chat_template"))


def _read_by_transformers(path: Path) -> Parts:
    """SentencePiece models, and what transformers builds itself."""
    from mlx_lm.utils import load_tokenizer

    found = load_tokenizer(path, {"trust_remote_code": False})
    names = {name: str(token) for name, token in found.special_tokens_map.items()}
    return found.backend_tokenizer, names, _only_template(found.chat_template)


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a file names, by what they are for."""
    found = {name: _text(config[name]) for name in SPECIAL_TOKENS if config.get(name) is not None}
    return {name: text for name, text in found.items() if text}


def _text(token: Any) -> str:
    """A token given as text, or as an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"a special token is {token!r}")
    return text


def _add_missing(backend: Any, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Adds the tokens that are named beside tokenizer.json only; they get the next ids."""
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
    """EOS ids of the network's configs; as in mlx-lm generation_config.json's where it has any."""
    own = _optional(path / "config.json") if network is None else network
    for config in (_optional(path / "generation_config.json"), own):
        found = config.get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if whole := [i for i in ids if type(i) is int and i >= 0]:
            return whole
    return []


def _only_template(found: Any) -> str | None:
    if isinstance(found, list):  # of several the one named default
        found = {template["name"]: template["template"] for template in found}
    if isinstance(found, dict):
        found = found.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError("the chat template is not text")
    return found


def token_id(tokenizer: Any, name: str) -> int | None:
    """The id of a token of the vocabulary by its name, None if there is no such token."""
    found = tokenizer.convert_tokens_to_ids(name)
    # An unknown name gives the id of the unknown token, where there is one: ask back.
    if found is None or tokenizer.convert_ids_to_tokens(found) != name:
        return None
    return int(found)


def special_ids(backend: Any) -> frozenset[int]:
    """Ids of a `tokenizers.Tokenizer` that are not text, whether flagged as special or not."""
    added = backend.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special or MARKUP.fullmatch(token.content))


def encode_text(backend: Any, text: str) -> list[int]:
    """Ids of text, from a `tokenizers.Tokenizer`, in which names of special tokens are text."""
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        control = special_ids(backend)
        if control.isdisjoint(ids):
            return ids
        # A name that the tokenizer does not flag as special: a cut within it breaks it up.
        names = sorted(filter(None, map(backend.id_to_token, control)))
        pieces = _cut_within(text, names)
        return [i for piece in pieces for i in backend.encode(piece, add_special_tokens=False).ids]
    finally:
        backend.encode_special_tokens = before


def _cut_within(text: str, names: Sequence[str]) -> list[str]:
    """Text in pieces, none of which holds any of the names."""
    pattern = "|".join(f"(?={re.escape(name)})" for name in names if len(name) > 1)
    cuts = [match.start() + 1 for match in re.finditer(pattern, text)]
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
