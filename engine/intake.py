"""What comes in from outside is checked here, once: a prompt becomes token ids, or a RequestError says why not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine import splices
from engine.pictures import PLACE, PLACEHOLDER, PictureReader, PlacedPicture, place
from engine.request import RequestError, SamplingParams, Tokens, TooLong
from engine.splices import Splice
from engine.tokenizer import Tokenizer

Prompt = str | Sequence[int] | np.ndarray


class Intake:
    """Limits are tokens. `text_is_recorded`: stop strings come from a log, so no tokenizer is needed for them."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        max_context: int,
        capacity_tokens: int,
        page_size: int,
        text_is_recorded: bool,
        pictures: PictureReader | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._capacity_tokens = capacity_tokens
        self._page_size = page_size
        self._text_is_recorded = text_is_recorded
        self._pictures = pictures

    def check(self, prompt: Prompt, params: SamplingParams) -> Tokens:
        """The prompt's token ids: int64 [tokens]. Raises RequestError."""
        return self.check_with_images(prompt, params)[0]

    def check_with_images(
        self, prompt: Prompt, params: SamplingParams, images: Sequence[Any] = ()
    ) -> tuple[Tokens, tuple[PlacedPicture, ...]]:
        """The prompt's key: int64 [tokens], and the pictures in it. Raises RequestError."""
        key, placed = self._seen(prompt, params, images) if images else (self._tokens(prompt), ())
        if len(key) == 0:
            raise RequestError("the prompt is empty: give at least one token (a beginning-of-sequence token, say)")
        if self._pictures is not None and not placed and (PLACE in key or self._pictures.image_token_id in key):
            raise RequestError(f"the prompt has a place for an image ({PLACEHOLDER}), but no images came with it")
        if not self._text_is_recorded:  # a recorded prompt's pictures are known by their keys alone
            self._check_ids("the prompt", key[key >= 0] if placed else key)
        self._check_ids("forced_output", params.forced_output or ())
        self._check_ids("stop_token_ids", params.stop_token_ids)
        if params.prompt_logprobs is not None and params.prompt_logprobs_start >= len(key):
            raise RequestError(
                f"prompt_logprobs_start={params.prompt_logprobs_start} leaves nothing to score in a prompt of "
                f"{len(key)} tokens: it must be at most {len(key) - 1}"
            )
        if params.grammar is not None and params.max_tokens == 0:
            raise RequestError("a grammar with max_tokens=0 constrains nothing: raise max_tokens or leave it out")
        if params.stop and self._tokenizer is None and not self._text_is_recorded:
            raise RequestError("stop strings need a tokenizer and this engine has none: use stop_token_ids")
        self._check_length(len(key), params.max_tokens)
        return key, placed

    def _seen(
        self, prompt: Prompt, params: SamplingParams, images: Sequence[Any]
    ) -> tuple[Tokens, tuple[PlacedPicture, ...]]:
        """A prompt with images. Raises RequestError."""
        reader = self._pictures
        if reader is None:
            raise RequestError("the model takes no images: send text alone, or serve a model that sees (llava-...)")
        tokens = self._with_places(prompt, reader)
        n = int((tokens == PLACE).sum())
        if n != len(images):
            raise RequestError(
                f"{len(images)} images for {n} places in the prompt: say {PLACEHOLDER} where each of them stands "
                f"({PLACE} in a prompt of token ids)"
            )
        key, placed = place(tokens.tolist(), [reader.read(image) for image in images], reader.n_tokens)
        if params.token_healing:
            raise RequestError("token_healing in a prompt with images isn't served: leave it out")
        if params.prompt_logprobs is not None and (key[params.prompt_logprobs_start :] < 0).any():
            raise RequestError(
                "prompt_logprobs of an image's positions aren't there, it has no tokens: set prompt_logprobs_start "
                f"to {placed[-1].end} or more"
            )
        return key, placed

    def _with_places(self, prompt: Prompt, reader: PictureReader) -> Tokens:
        """Token ids, PLACE where an image stands."""
        if not isinstance(prompt, str) or self._tokenizer is None or PLACEHOLDER in self._tokenizer.added_tokens:
            tokens = self._tokens(prompt).copy()
        else:  # the tokenizer has no token for it
            first, *rest = prompt.split(PLACEHOLDER)
            ids = list(self._tokenizer.encode(first))
            for part in rest:
                ids += [PLACE, *self._tokenizer.encode(part, add_special_tokens=False)]
            tokens = np.asarray(ids, np.int64)
        if reader.image_token_id is not None:
            tokens[tokens == reader.image_token_id] = PLACE
        return tokens

    def check_splices(self, key: Tokens, params: SamplingParams, given: Sequence[Splice]) -> tuple[Splice, ...]:
        """The splices of a prompt of these tokens. Raises RequestError.

        A token whose logits are needed is computed where it stands: the prompt's last, and the one before the first
        that is scored. Where a splice ends with it, it isn't a part of it any more.
        """
        splices.check(given, len(key))
        last = len(key) - 1
        if given and params.prompt_logprobs is not None:
            if params.prompt_logprobs_start < given[-1].end:
                raise RequestError(
                    f"prompt_logprobs_start={params.prompt_logprobs_start} asks for logits of branches that are "
                    f"copied, not computed: it must be from the last one's end on, {given[-1].end}"
                )
            last = params.prompt_logprobs_start - 1
        kept = splices.cut(given, last)
        splices.check_room(
            kept, len(key) + params.max_tokens, self._page_size, self._capacity_tokens // self._page_size
        )
        return kept

    def _tokens(self, prompt: Prompt) -> Tokens:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise RequestError("the prompt is text, but this engine has no tokenizer: give token ids")
            return np.asarray(self._tokenizer.encode(prompt), np.int64)
        try:
            given = np.asarray(prompt)
        except (ValueError, TypeError, OverflowError) as error:
            raise RequestError(f"the prompt must be text or a flat list of token ids ({error})") from None
        if given.size == 0:
            return np.empty(0, np.int64)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise RequestError(
                f"the prompt must be text or a flat list of token ids, not {given.ndim}-dimensional {given.dtype}"
            )
        return given.astype(np.int64)

    def _check_ids(self, name: str, ids: Sequence[int] | Tokens) -> None:
        given = np.asarray(ids)
        if len(given) and not (given.min() >= 0 and given.max() < self._vocab_size):
            wrong = next(t for t in given.tolist() if not 0 <= t < self._vocab_size)
            raise RequestError(f"{name} has token id {wrong}; the model knows ids from 0 to {self._vocab_size - 1}")

    def _check_length(self, n_prompt: int, max_tokens: int) -> None:
        total = n_prompt + max_tokens
        for limit, what, cure in (
            (self._max_context, "the model's context", "shorten the prompt or lower max_tokens"),
            (self._capacity_tokens, "the KV pool", "shorten the prompt, lower max_tokens or raise engine.pool_tokens"),
        ):
            if total > limit:
                raise TooLong(
                    f"{n_prompt} prompt tokens + max_tokens={max_tokens} = {total} is more than {what} of {limit} "
                    f"tokens: {cure}"
                )
