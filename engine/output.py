"""When an output ends, and what its text is."""

from __future__ import annotations

from collections.abc import Sequence

from engine.detokenizer import OutputText
from engine.request import FinishReason, Request
from engine.tokenizer import Tokenizer


def text_of(request: Request, tokenizer: Tokenizer, stop: Sequence[str]) -> OutputText:
    """For the text of the request's output, from its first token on."""
    return OutputText(tokenizer, request.key.tolist(), stop, request.params.min_tokens, request.taken_back)


class Outputs:
    """Follows each request's output token by token.

    `text_is_recorded`: stop strings were found when the run was recorded; no tokenizer looks for them again.
    """

    makes_text = True
    """False: `request.text` stays empty, somebody else makes it from the tokens. Stop strings are looked for anyway."""

    def __init__(self, tokenizer: Tokenizer | None, *, text_is_recorded: bool) -> None:
        self._tokenizer = tokenizer
        self._text_is_recorded = text_is_recorded
        self._texts: dict[int, OutputText] = {}

    def take(
        self, request: Request, token: int, n: int, recorded_stop: str | None, *, complete: bool = False
    ) -> FinishReason | None:
        """The request's output token number `n`, already appended. Says why the output ends with it, or None.

        complete: its grammar lets nothing follow it.
        """
        params = request.params
        if params.forced_output is not None:
            if n < len(params.forced_output):
                return None
            return FinishReason.LENGTH if n == params.max_tokens else FinishReason.STOP
        ends = token in params.stop_token_ids or (token in request.eos and not params.ignore_eos)
        if ends and n >= params.min_tokens and not _says_again(request, n):
            request.stop_match = token
            return FinishReason.STOP
        if params.stop:
            stop = recorded_stop if self._text_is_recorded else self._push(request, token)
            if stop is not None:
                request.stop_match = stop
                return FinishReason.STOP
        if complete:
            return FinishReason.STOP
        return FinishReason.LENGTH if n == params.max_tokens else None

    def n_again(self, request: Request) -> int | None:
        """Output tokens that begin within what was taken back from the prompt; None as long as the next one may."""
        assert self._tokenizer is not None  # recorded otherwise
        size = self._tokenizer.token_bytes
        left = sum(len(size(token)) for token in request.taken_back)
        for n, token in enumerate(request.output):
            if left <= 0:
                return n
            left -= len(size(token))
        return request.output_tokens if left <= 0 else None

    def _push(self, request: Request, token: int) -> str | None:
        text = self._texts.get(request.id)
        if text is None:
            text = self._texts[request.id] = self._open(request, request.params.stop)
        text.push(token)
        return text.stopped_by

    def _open(self, request: Request, stop: tuple[str, ...]) -> OutputText:
        assert self._tokenizer is not None  # stop strings without a tokenizer are refused at the door
        return text_of(request, self._tokenizer, stop)

    def close(self, request: Request) -> None:
        """Sets `request.text`; a stop token is no part of it."""
        text = self._texts.pop(request.id, None)
        if self._tokenizer is None or not self.makes_text:
            return
        if text is None:
            text = self._open(request, ())
            output = request.output
            for token in output[:-1] if isinstance(request.stop_match, int) else output:
                text.push(token)
        text.flush()
        request.text = text.text


def _says_again(request: Request, n: int) -> bool:
    """The output token number n begins within what was taken back from the prompt: it ends nothing."""
    return bool(request.taken_back) and (request.n_again is None or n <= request.n_again)
