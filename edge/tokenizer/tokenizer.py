"""The tokenizer of a model directory, read without transformers.

    tokenizer = Tokenizer.load(Path("models/demo/mlx-fp16"))
    tokenizer.decode(tokenizer.encode("def f(x):"))

transformers takes a second and a half to import, most of what a completion took. What language
models need of it is the `tokenizers` package and a few keys of small files, read here as its
AutoTokenizer reads them; ids and text are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import read_json_object, read_small_file

TOKENIZER, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
# In the order in which transformers adds those that the vocabulary lacks.
SPECIAL_TOKENS = tuple(
    f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
# transformers does not read these tokenizer.json as they are but builds its own from their parts.
REBUILT = ("LlamaTokenizer", "CodeLlamaTokenizer")


class Tokenizer:
    """Text to ids and back, with the methods that mlx-lm asks of a tokenizer of transformers.

    Args:
        backend: a `tokenizers.Tokenizer`.
        special_tokens: text of `bos_token`, `eos_token`, ...; those that there are.
        eos_ids: ids that end a text, beside the EOS token's.
        chat_template: Jinja, or None.
    """

    def __init__(
        self,
        backend: Any,
        special_tokens: Mapping[str, str],
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
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

        Raises:
            EdgeError: there is none, or one of its files is broken.
        """
        if not any((path / name).exists() for name in (TOKENIZER, SENTENCEPIECE)):
            raise EdgeError(
                f"{path} has no {TOKENIZER} and no {SENTENCEPIECE}; download or convert the "
                f"model again."
            )
        eos_ids = _eos_ids(path, network)
        try:
            backend, names, template = _read(path) or _read_by_transformers(path)
            return cls(backend, names, eos_ids, template)
        except EdgeError:
            raise
        except Exception as error:  # neither tokenizers nor transformers has classes for its own
            raise EdgeError(
                f"{path}: the tokenizer cannot be read ({error or type(error).__name__}); convert "
                f"the checkpoint again."
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
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Every token's id, added ones included."""
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text -> ids; names of special tokens in it become these tokens.

        With `add_special_tokens` BOS or EOS come with it, where the model has it so.
        """
        backend = self.backend_tokenizer
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):
            raise EdgeError(
                "the text has half a surrogate pair, which is not a character; read it as UTF-8."
            ) from None
        return ids

    def decode(
        self,
        ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Ids -> text; ids that the vocabulary lacks are nothing, those beyond 32 bits an error.

        `clean_up_tokenization_spaces` is ignored, as transformers does for BPE.
        """
        ids = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

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

        Raises:
            EdgeError: the model has no template, or it does not take these messages.
        """
        if self.chat_template is None:
            raise EdgeError("the model has no chat template, so it cannot chat; complete instead.")
        from edge.tokenizer.chat_template import render

        assert not return_dict, "text or ids only"
        values = {**self.special_tokens_map, **variables}
        text = render(
            self.chat_template, messages, add_generation_prompt=add_generation_prompt, **values
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text


# The `tokenizers.Tokenizer` of a directory, its special tokens by their names, its chat template.
Parts = tuple[Any, dict[str, str], str | None]


def _read(path: Path) -> Parts | None:
    """Reads a directory without transformers; None where that would make something else of it."""
    from tokenizers import Tokenizer as Backend

    config, file = _optional(path / "tokenizer_config.json"), path / TOKENIZER
    if not file.exists():
        return None
    data = read_small_file(file)
    try:
        backend = Backend.from_buffer(data)
    except Exception as error:  # it has no class for its errors
        raise EdgeError(
            f"{file} is not a tokenizer ({error}); download or convert the model again."
        ) from None
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
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TypeError(f"a special token is {text!r}")
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
    own = _whole_ids(_optional(path / "generation_config.json"))
    return own or _whole_ids(_optional(path / "config.json") if network is None else network)


def _whole_ids(config: Mapping[str, Any]) -> list[int]:
    found = config.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return [i for i in ids if type(i) is int and i >= 0]


def _only_template(found: Any) -> str | None:
    if isinstance(found, list):  # of several the one named default
        found = {template["name"]: template["template"] for template in found}
    if isinstance(found, dict):
        found = found.get("default")
    if found is not None and not isinstance(found, str):
        raise TypeError(f"the chat template is {type(found).__name__}, not text")
    return found
