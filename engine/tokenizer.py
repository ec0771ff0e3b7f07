"""Text to token ids and back. What `decode` gives is defined by the bytes of each token, so it can be streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from engine import hub
from engine.builtin_text import TEXT
from engine.byte_pair import BytePairTokenizer, refuse_half_characters, train

BUILTIN_VOCAB = 512
_SPECIALS = ("<unk>", "<s>", "</s>")
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<|startoftext|>")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<|eot_id|>", "<|endoftext|>", "<|im_end|>")
_SPOKEN = ("[TOOL_CALLS]", "<tool_call>", "</tool_call>")
"""Special tokens of some tokenizers that a model writes for its reader: they have text, as any other token."""
_HUB_FILES = ("*.json", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja")


class TokenizerError(ValueError):
    """The tokenizer can't be loaded, or can't be used here. The message says which one, why, and what to do."""


class Tokenizer(Protocol):
    """Text and token ids.

    The text of ids is `b"".join(token_bytes(i) for i in ids)`, without its first byte where that is a space and
    `strips_leading_space` is set, decoded as UTF-8 with U+FFFD for what is no UTF-8.
    """

    @property
    def vocab_size(self) -> int:
        """Ids go from 0 to vocab_size - 1."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that steer and have no text."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """What chat templates call them (`bos_token`, `eos_token`, ...) and their texts."""

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Tokens beside the vocabulary that was learnt, special ones among them: their texts and ids."""

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Sources of the chat templates that came with it: `default`, perhaps `tool_use`."""

    @property
    def strips_leading_space(self) -> bool:
        """Encoding puts a space before the text (sentencepiece), so decoding takes one away."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """add_special_tokens: with what the model wants around a text, `<s>` before it say.

        Raises RequestError for half a surrogate pair.
        """

    def named_encoder(self, names: Mapping[str, str]) -> Callable[[str], list[int]]:
        """`encode` without tokens around, for texts in which some added tokens go by other names.

        names: text of an added token to its name. That text is plain text then, and the name is the token.
        """

    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text, UTF-8; perhaps a part of a character. Empty for special and unknown ids."""


def decode_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids`, by the law that `Tokenizer` states."""
    text = b"".join(map(tokenizer.token_bytes, ids))
    if tokenizer.strips_leading_space and text.startswith(b" "):
        text = text[1:]
    return text.decode("utf-8", errors="replace")


@lru_cache(maxsize=1)
def builtin_tokenizer() -> BytePairTokenizer:
    """The tokenizer of the named shape `tiny`: 512 byte-level tokens, `<s>` is 1, `</s>` is 2. Needs no file."""
    merges = train(TEXT, BUILTIN_VOCAB - len(_SPECIALS) - 256)
    return BytePairTokenizer(merges, _SPECIALS, bos="<s>", eos="</s>")


class HFTokenizer:
    """A tokenizer of the `transformers` library, byte-level (GPT-2, Llama 3, Qwen) or sentencepiece-like (Llama 2)."""

    def __init__(
        self,
        fast: Any,
        eos_token_ids: Sequence[int],
        bos_token_id: int | None,
        name: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        """fast: a `tokenizers.Tokenizer`. Raises TokenizerError when its decoder is of another kind."""
        self.name = name
        self.eos_token_ids = tuple(eos_token_ids)
        self.bos_token_id = bos_token_id
        self._fast = fast
        fast.no_truncation()
        fast.no_padding()
        vocab: dict[str, int] = fast.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        added = fast.get_added_tokens_decoder()
        self.added_tokens: Mapping[str, int] = {token.content: i for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special and token.content not in _SPOKEN)
        self.special_tokens: Mapping[str, str] = special_tokens or {}
        self.chat_templates: Mapping[str, str] = chat_templates or {}
        decoder = json.loads(fast.to_str())["decoder"]
        kinds = _decoder_kinds(decoder)
        self._bytes = [b""] * self.vocab_size
        if "ByteLevel" in kinds:
            self.strips_leading_space = False
            table = _byte_level_table()
            for token, i in vocab.items():
                known = all(char in table for char in token)
                self._bytes[i] = bytes(table[char] for char in token) if known else token.encode()
        elif "Metaspace" in kinds or "ByteFallback" in kinds:
            self.strips_leading_space = _strips(decoder)
            for token, i in vocab.items():
                byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
                self._bytes[i] = bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
        else:
            raise TokenizerError(
                f"the tokenizer {name} has the decoder {kinds or None}: only byte-level and sentencepiece-like ones "
                "(with ByteLevel, Metaspace or ByteFallback) can be streamed exactly; take a model of the Llama kind"
            )
        for i in self.special_ids:
            self._bytes[i] = b""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        refuse_half_characters(text)
        return self._fast.encode(text, add_special_tokens=add_special_tokens).ids

    def named_encoder(self, names: Mapping[str, str]) -> Callable[[str], list[int]]:
        from tokenizers import Tokenizer as Fast

        renamed = Fast.from_str(json.dumps(_renamed(json.loads(self._fast.to_str()), names), ensure_ascii=False))
        own_ids = {renamed.token_to_id(names.get(text, text)): i for text, i in self.added_tokens.items()}

        def encode(text: str) -> list[int]:
            refuse_half_characters(text)
            ids = renamed.encode(text, add_special_tokens=False).ids
            return [own_ids.get(i, i) for i in ids]

        return encode

    def decode(self, ids: Sequence[int]) -> str:
        return decode_bytes(self, ids)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""


def load_tokenizer(path_or_name: str | Path) -> HFTokenizer:
    """A tokenizer from a Hugging Face folder, a lone `tokenizer.json`, or the hub. No remote code is run.

    Raises TokenizerError when it can't be found, read or used.
    """
    name = str(path_or_name)
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.is_dir():
        return _from_folder(path, name)
    if path.is_absolute() or name.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise TokenizerError(f"no tokenizer at {name}: give a Hugging Face folder, a tokenizer.json or a hub name")
    try:
        folder = hub.fetch(name, _HUB_FILES)
    except hub.HubError as error:
        raise TokenizerError(f"no tokenizer {name}: {error} or of a tokenizer.json") from error
    return _from_folder(folder, name)


def _from_file(path: Path) -> HFTokenizer:
    from tokenizers import Tokenizer as Fast

    try:
        fast = Fast.from_file(str(path))
    except Exception as error:
        raise TokenizerError(f"{path} is not a tokenizer.json that can be read: {error}") from error
    vocab: dict[str, int] = fast.get_vocab(with_added_tokens=True)
    bos = [name for name in _BOS_NAMES if name in vocab]
    eos = [name for name in _EOS_NAMES if name in vocab]
    special_tokens = {kind: names[0] for kind, names in (("bos_token", bos), ("eos_token", eos)) if names}
    bos_id = vocab[bos[0]] if bos else None
    return HFTokenizer(fast, [vocab[name] for name in eos], bos_id, str(path), special_tokens=special_tokens)


def _from_folder(folder: Path, name: str) -> HFTokenizer:
    from transformers import AutoTokenizer

    try:
        slow_or_fast = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        fast = slow_or_fast.backend_tokenizer
    except Exception as error:
        raise TokenizerError(
            f"the tokenizer in {name} can't be read: {error}; the folder needs a sound tokenizer.json "
            "(and tokenizer_config.json), as transformers' save_pretrained writes them"
        ) from error
    eos = [slow_or_fast.eos_token_id] if slow_or_fast.eos_token_id is not None else []
    for file in ("generation_config.json", "config.json"):
        eos += _eos_ids(folder / file)
    templates = slow_or_fast.chat_template or {}
    return HFTokenizer(
        fast,
        tuple(dict.fromkeys(eos)),
        slow_or_fast.bos_token_id,
        name,
        special_tokens=slow_or_fast.special_tokens_map,
        chat_templates={"default": templates} if isinstance(templates, str) else templates,
    )


def _eos_ids(file: Path) -> list[int]:
    """`eos_token_id` of a model's config: a number, a list or nothing."""
    if not file.is_file():
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    return list(value) if isinstance(value, list) else [value] if isinstance(value, int) else []


def _renamed(data: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json whose added tokens, and their entries in the vocabulary, go by other names."""
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    merged = {part for merge in model.get("merges") or () for part in _parts(merge)}
    names = {text: name for text, name in names.items() if text not in merged}
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): i for text, i in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return data


def _parts(merge: str | list[str]) -> list[str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return [left, right, left + right]


def _decoder_kinds(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [part["type"] for part in parts]


def _strips(decoder: dict[str, Any]) -> bool:
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return any(
        (part["type"] == "Strip" and part["content"] == " " and part["start"] > 0)
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _byte_level_table() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2, `bytes_to_unicode`), turned round."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
