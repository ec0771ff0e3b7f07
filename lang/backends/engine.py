"""The language on our own engine. The only file of `lang` that knows it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.chat_template import load_chat_template
from engine.clock import Clock, WallClock
from engine.constraints import Grammar, ToolChoice, json_schema, regex
from engine.control_tokens import ControlTokens
from engine.detokenizer import OutputText
from engine.output import text_of
from engine.pictures import PLACE
from engine.policies import base as policies
from engine.request import FinishReason, Request, RequestError, SamplingParams
from engine.server.tool_calls import CallArguments, CallEnd, CallStart, Content, ToolCallParser
from engine.server.tool_formats import HERMES, ToolFormat, choose_tool_format, make_tool
from engine.splices import JoinedPrompt, Splice
from engine.tokenizer import Tokenizer
from lang.backends.base import Backend, Call, Tags, TokenLogprob
from lang.backends.recorded_outputs import forced
from lang.backends.scoring import Scoring, common_length
from lang.capabilities import Capabilities, Feature
from lang.chat_style import NoStyle, style_of
from lang.choices import ChoicesMethod
from lang.hints import ConversationEnd, Hint, Pin, Prefetch, Unpin
from lang.prompt import PLAIN, BranchMark, ChatStyle, Image, Piece, Prompt, RoleMark
from lang.sampling import NAMES, Sampling
from lang.tools import ToolCall

if TYPE_CHECKING:
    from engine.engine import Engine

_SHARED = tuple(f.name for f in dataclasses.fields(SamplingParams) if f.name in NAMES)
"""Sampling values that the engine knows by the same name."""
MISSING = {
    Feature.IMAGES: "the model takes none: serve one that sees (llava-...), or describe the picture in text",
}
"""Of an engine whose model doesn't see."""


class EngineBackend(Backend):
    """Calls are queued in the engine at once; a step is one of the engine's."""

    def __init__(self, engine: Engine, *, style: ChatStyle | None = None) -> None:
        """style: how roles are written; by default as the chat template of the model's tokenizer does, plain if it has
        none. A template that can't be taken apart leaves the backend without roles until a style is given."""
        self.engine = engine
        self.clock: Clock = engine.clock
        self._chat = _Chat(engine.tokenizer, style)
        self.style = self._chat.style
        self.capabilities = Capabilities(
            "the engine", {**({} if engine.image_tokens else MISSING), **self._chat.missing}
        )
        self._open: dict[Call, Scoring | ToolCallParser | None] = {}
        """With what reads the answer."""
        self._call_of: dict[int, Call] = {}
        """By request id."""
        self._growing: dict[Call, _Following] = {}
        """Outputs that somebody reads while they grow."""
        self._ends: dict[Call, list[_RegexEnd]] = {}
        """Of outputs that end where a pattern matches, one a sample."""

    @property
    def identity(self) -> str:
        config = self.engine.config
        return f"the engine, {config.model} in {config.dtype} on {self.engine.executor.device}"

    def generate(self, name: str | None, prompt: Prompt, sampling: Sampling, tags: Tags) -> Call:
        """Tools are described in the system message (before all, without roles). Raises RequestError when the engine
        can't serve it."""
        force = forced(sampling, lambda said: self._chat.output_tokens(prompt, said))
        sampling = sampling if force is None else force.sampling
        grammar, parser = _grammar_of(sampling), None
        if sampling.tools:
            if prompt.has_joined_branches:
                raise RequestError(
                    "tools behind join('concate_and_append') aren't served: they are told at the prompt's beginning, "
                    "which the branches didn't see: use join() and add the branches' texts"
                )
            use = _ToolUse(sampling, self._chat.tool_format)
            prompt, grammar, parser = use.told(prompt), use.grammar, use.parser
        samples = (None,) if force is None else force.samples
        if samples[0] is not None:  # what a grammar would have held it to is in the recording
            grammar = None
        values = {name: getattr(sampling, name) for name in _SHARED}
        if prompt.pieces and isinstance(prompt.pieces[-1], RoleMark):  # no text of the program's ends there
            values["token_healing"] = False
        call = Call(name=name, prompt=prompt.text(self.style), request=prompt, tags=tags)
        ends = [_pattern(text) for text in sampling.stop_regex]
        asked, splices = self._chat.asked(prompt, call.prompt)
        images = [image.data for image in prompt.images]
        for one in samples:
            values |= {"n": 1} if len(samples) > 1 else {}
            values |= {} if one is None else {"forced_output": one}
            params = SamplingParams(grammar=grammar, **values)
            call.requests += self.engine.add(asked, params, images=images, splices=splices, **_placed(tags))
        if ends:
            self._ends[call] = [_RegexEnd(self._follow(request), ends) for request in call.requests]
        return self._queue(call, parser)

    def score(
        self, name: str | None, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod, tags: Tags
    ) -> Call:
        """All choices go in together: the prompt is computed once and they share its KV.

        They are scored from the first token at which any of them differs from the prompt alone (a choice may merge with
        the prompt's last token), so that the same text is scored for each. Raises RequestError when it can't be served.
        """
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise RequestError("select needs an engine with a tokenizer: its choices are text")
        text = prompt.text(self.style)
        alone, splices = self._chat.laid_out_tokens(prompt, text)
        joined = [self._chat.laid_out_tokens(prompt + Prompt((choice,)), text + choice)[0] for choice in choices]
        start = max(1, min(common_length(alone, tokens) for tokens in joined))
        if any(len(tokens) <= start for tokens in joined):
            raise RequestError(f"select after the prompt {text!r:.40}: a choice's first token has nothing before it")
        prompts = [(tokens, start, splices) for tokens in joined]
        if method.needs_unconditional:
            before = list(tokenizer.encode(""))
            if not before:
                raise RequestError(
                    f"choices_method={method.name!r} needs a token to begin with, and this model's tokenizer adds "
                    "none; use token_length_normalized"
                )
            prompts += [(before + tokens[start:], len(before), ()) for tokens in joined]
        call = Call(name=name, prompt=text, request=prompt, tags=tags)
        placed = _placed(tags._replace(siblings=tags.siblings * len(prompts)))
        try:
            for tokens, first, spliced in prompts:
                first += tokens[:first].count(PLACE) * (self.engine.image_tokens - 1)  # where it is once images are in
                params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=first)
                images = [image.data for image in prompt.images] if PLACE in tokens else []
                call.requests += self.engine.add(tokens, params, images=images, splices=spliced, **placed)
        except RequestError:
            for request in call.requests:
                self.engine.abort(request)
            raise
        return self._queue(call, Scoring(tuple(choices), tuple(tuple(tokens[start:]) for tokens in joined), method))

    def step(self) -> list[Call]:
        touched = dict.fromkeys(
            call for request in self.engine.step() if (call := self._call_of.pop(request.id, None)) is not None
        )
        for call, ends in self._ends.items():
            for end in ends:
                if end.look() and not end.request.finished:
                    self.engine.abort(end.request)
                    touched[call] = None
        if not self.engine.has_work:  # requests that others aborted aren't reported
            touched |= self._open
        ended = [call for call in touched if self._settle(call)]
        for call, following in self._growing.items():
            call.partial += following.new()
        return ended

    def abort(self, call: Call) -> None:
        self._forget(call)
        for request in call.requests:
            self.engine.abort(request)

    def watch(self, call: Call) -> None:
        """A select, and an output with tool calls or an end by `stop_regex`, come in one piece."""
        if call in self._ends or self._open.get(call, call) is not None or self.engine.tokenizer is None:
            return
        self._growing[call] = following = self._follow(call.requests[0])
        call.partial += following.new()

    def commit(self, prompt: Prompt, tags: Tags) -> int | None:
        """Computes the prefix, unless it is cached. One that can't be is left to the calls that begin with it, which
        say why."""
        prompt = prompt.ordinary  # what is computed on top of joined branches is never cached
        with contextlib.suppress(ValueError):
            tokens = self._chat.encode(prompt, prompt.text(self.style))
            images = [image.data for image in prompt.images]
            return self.engine.add(tokens, SamplingParams(max_tokens=0), images=images, **_placed(tags))[0].id
        return None

    def hint(self, hint: Hint, tags: Tags) -> None:
        """Passes it to the policies. A prefix comes to them as the tokens that calls beginning with it will have, but
        for its last one: that may merge with what follows. One that has no tokens here (images that
        the model can't see, say) is left."""
        if isinstance(hint, ConversationEnd):
            self.engine.hint(policies.ConversationEnd(hint.id))
            return
        tokens = self._prefix_tokens(hint.prefix.ordinary)
        if not tokens:
            return
        match hint:
            case Prefetch(steps=steps):
                self.engine.hint(policies.Prefetch(tokens, steps, tags.namespace))
            case Pin(until=until):
                self.engine.hint(policies.Pin(tokens, until, tags.namespace))
            case Unpin():
                self.engine.hint(policies.Unpin(tokens, tags.namespace))

    def _prefix_tokens(self, prompt: Prompt) -> list[int]:
        """Empty for a prompt that can't be encoded, and where nobody listens."""
        if self.engine.tokenizer is None or not self.engine.config.hints:
            return []
        with contextlib.suppress(ValueError):
            tokens = self._chat.tokens(prompt, prompt.text(self.style))
            if not prompt.images:
                return tokens[:-1]
            images = [image.data for image in prompt.images]
            return self.engine.intake.check_with_images(tokens, SamplingParams(max_tokens=0), images)[0][:-1].tolist()
        return []

    def rest(self) -> float:
        """While all requests are deferred. Virtual time has no rest: a step leaps over it."""
        until = self.engine.idle_until
        return 0.0 if until is None or not isinstance(self.clock, WallClock) else max(0.0, until - self.clock.now())

    def flush_cache(self) -> None:
        self.engine.flush_cache()

    def _queue(self, call: Call, reader: Scoring | ToolCallParser | None) -> Call:
        self._open[call] = reader
        for request in call.requests:
            self._call_of[request.id] = call
        return call

    def _forget(self, call: Call) -> None:
        for known in (self._open, self._growing, self._ends):
            known.pop(call, None)
        for request in call.requests:
            self._call_of.pop(request.id, None)

    def _follow(self, request: Request) -> _Following:
        params, tokenizer = request.params, self.engine.tokenizer
        if tokenizer is None:
            raise RequestError("this engine has no tokenizer, so that outputs have no text: read their tokens")
        stop = params.stop if params.forced_output is None else ()
        return _Following(request, text_of(request, tokenizer, stop))

    def _settle(self, call: Call) -> bool:
        """Fills the call in, once its last request has finished."""
        if call not in self._open or not all(request.finished for request in call.requests):
            return False
        reader = self._open[call]
        cut = {end.request.id: end.text for end in self._ends.get(call, ()) if end.found}
        self._forget(call)
        call.finished = True
        call.error = next((why for one in call.requests if one.id not in cut and (why := _failure(one))), None)
        call.meta = _counts(call.requests)
        if call.error is not None:
            return True
        if isinstance(reader, Scoring):
            logprobs = [tuple(entry.logprob for entry in request.prompt_logprobs) for request in call.requests]
            scores = reader.scores(logprobs)
            call.texts = (reader.choices[reader.method.pick(scores)],)
            call.meta["choices"] = reader.choices
            call.meta["normalized_prompt_logprobs"] = [score.mean_logprob for score in scores]
            call.meta["input_token_logprobs"] = [list(score.logprobs) for score in scores]
            return True
        call.texts = tuple(cut.get(request.id, request.text) for request in call.requests)
        reasons = ["stop" if request.id in cut else _reason(request) for request in call.requests]
        call.meta["finish_reason"] = reasons[0] if len(reasons) == 1 else reasons
        if len(reasons) > 1:
            call.sample_meta = tuple(
                {**_counts([request]), "finish_reason": reason} for request, reason in zip(call.requests, reasons)
            )
        if reader is not None:
            _read_calls(call, reader)
        if call.requests[0].params.logprobs is not None:
            self._add_logprobs(call)
        return True

    def _add_logprobs(self, call: Call) -> None:
        """Of the first sample. In the meta info as SGLang has them: (log-probability, token id, text)."""

        def text(token: int) -> str:
            tokenizer = self.engine.tokenizer
            return "" if tokenizer is None else tokenizer.token_bytes(token).decode("utf-8", errors="replace")

        call.logprobs = [
            TokenLogprob(text(one.token), one.token, one.logprob, tuple((text(t), t, value) for t, value in one.top))
            for one in call.requests[0].logprobs
        ]
        call.meta["output_token_logprobs"] = [(one.logprob, one.token, one.text) for one in call.logprobs]
        call.meta["output_top_logprobs"] = [
            [(value, token, said) for said, token, value in one.top] for one in call.logprobs
        ]


class _Following:
    """Reads a request's output as it comes."""

    def __init__(self, request: Request, text: OutputText) -> None:
        self.request = request
        self._text = text
        self._n_taken = 0

    def new(self) -> str:
        """What came since the last time; nothing once the request has finished."""
        if self.request.finished or self.request.output_tokens <= self._n_taken:
            return ""
        tokens = self.request.output[self._n_taken :]
        self._n_taken += len(tokens)
        return "".join(map(self._text.push, tokens))


class _RegexEnd:
    """Cuts an output before the first match of a pattern, looked for after every token."""

    def __init__(self, following: _Following, patterns: Sequence[re.Pattern[str]]) -> None:
        self.request = following.request
        self.text = ""
        self.found = False
        self._following = following
        self._patterns = patterns

    def look(self) -> bool:
        """A pattern was found."""
        if not self.found:
            self.text = self.request.text if self.request.finished else self.text + self._following.new()
            starts = [match.start() for pattern in self._patterns if (match := pattern.search(self.text))]
            if starts:
                self.found, self.text = True, self.text[: min(starts)]
        return self.found


class _Chat:
    """How this model's prompts are written and become tokens."""

    def __init__(self, tokenizer: Tokenizer | None, style: ChatStyle | None) -> None:
        self._tokenizer = tokenizer
        self.missing: dict[Feature, str] = {}
        """CHAT, where the template can't be taken apart."""
        self.tool_format: ToolFormat = HERMES
        self.style = PLAIN if style is None else style
        self._control: ControlTokens | None = None
        if tokenizer is None:
            return
        if tokenizer.chat_templates:
            template = load_chat_template(tokenizer)
            self.tool_format = choose_tool_format(None, template.source)
            if style is None:
                bos = tokenizer.special_tokens.get("bos_token", "")
                try:
                    self.style = style_of(template.render, f"the chat template of {template.origin}", bos)
                except NoStyle as error:
                    self.missing[Feature.CHAT] = str(error)
        if self.style is not PLAIN:
            told = [self.style.start, self.style.default_system, *self.style.begin.values(), *self.style.end.values()]
            self._control = ControlTokens(tokenizer, "\0".join(told))
        self._head = () if style is None else tuple(tokenizer.encode(""))
        """What the style itself doesn't begin with: a template says all."""

    def encode(self, prompt: Prompt, text: str) -> str | list[int]:
        """For the engine. `text` is the prompt, written.

        Text of a control token inside a message stays text. Raises RequestError where it can't.
        """
        if prompt.images:
            return self._with_places(prompt)
        if self._control is None or not prompt.has_roles:
            return text
        marked = Prompt(
            tuple(self._control.mark(piece).value if isinstance(piece, str) else piece for piece in prompt.pieces)
        ).text(self.style)
        bos = self._tokenizer.special_tokens.get("bos_token") if self._tokenizer is not None else None
        head = () if bos and text.startswith(bos) else self._head
        return [*head, *self._control.encode(marked)]

    def _with_places(self, prompt: Prompt) -> list[int]:
        """Tokens of the texts around the images, with places for these."""
        parts: list[list[Piece]] = [[]]
        for piece in prompt.pieces:
            if isinstance(piece, Image):
                parts.append([])
            else:
                parts[-1].append(piece)
        first = Prompt(tuple(parts[0]))
        written = first.text(self.style)
        if prompt.has_roles and not first.has_roles:  # an image stands before the first role
            raise RequestError("an image before the first message isn't served: put it into a user's message")
        tokens = self.tokens(first, written) if written else list(self._head_tokens())
        for part in parts[1:]:
            tokens += [PLACE, *(self._going_on(part) if part else [])]
        return tokens

    def _head_tokens(self) -> Sequence[int]:
        """What every prompt begins with."""
        return () if self._tokenizer is None else self._tokenizer.encode("")

    def asked(self, prompt: Prompt, text: str) -> tuple[str | list[int], tuple[Splice, ...]]:
        """For the engine, with the branches that are joined by their KV."""
        if not prompt.has_joined_branches:
            return self.encode(prompt, text), ()
        return self.laid_out_tokens(prompt, text)

    def laid_out_tokens(self, prompt: Prompt, text: str) -> tuple[list[int], tuple[Splice, ...]]:
        if not prompt.has_joined_branches:
            return self.tokens(prompt, text), ()
        laid = self.laid_out(prompt)
        return laid.tokens, tuple(laid.splices)

    def laid_out(self, prompt: Prompt) -> JoinedPrompt:
        """The prompt's tokens, with branches that are joined by their KV as they were served alone.

        Where a branch's first token lies over the fork, its own text is read anew behind the tokens before the fork.
        """
        laid, pending = JoinedPrompt(), list[Piece]()
        pieces = iter(prompt.pieces)
        for piece in pieces:
            if isinstance(piece, BranchMark):
                self._flush(laid, pending)
                own = list(_to_end_of_branch(pieces))
                self._join(laid, Prompt(piece.prefix), Prompt.of(own))
            else:
                pending.append(piece)
        self._flush(laid, pending)
        return laid

    def _flush(self, laid: JoinedPrompt, pending: list[Piece]) -> None:
        if pending:
            prompt = Prompt.of(pending)
            first = not laid.tokens
            laid.append(self.tokens(prompt, prompt.text(self.style)) if first else self._going_on(prompt.pieces))
            pending.clear()

    def _join(self, laid: JoinedPrompt, prefix: Prompt, own: Prompt) -> None:
        """Raises RequestError for a fork that lies inside a token of what follows it."""
        before, branch = self.laid_out(prefix), self.laid_out(prefix + own)
        fork = len(before.tokens)
        if branch.tokens[:fork] != before.tokens:
            branch = before.copy()
            for piece in own.pieces:
                if isinstance(piece, BranchMark):
                    raise RequestError(
                        "join('concate_and_append') inside a branch whose first token lies over its fork isn't served: "
                        "end the text before the fork with a line or a word"
                    )
            branch.append(self._going_on(own.pieces))
        if laid.tokens[:fork] != before.tokens:
            raise RequestError(
                "join('concate_and_append'): what was added to the parent since the fork makes one token with what "
                "stands before the fork: end that with a line or a word, or join before adding to the parent"
            )
        laid.join([branch], fork)

    def output_tokens(self, prompt: Prompt, said: str) -> list[int]:
        """Of an output of the prompt: those that the prompt and it have together, where the prompt's own stay the same,
        so that what follows finds them in the cache."""
        before = self.laid_out_tokens(prompt, prompt.text(self.style))[0]
        if not prompt.has_joined_branches:
            both = prompt + Prompt((said,))
            joined = self.tokens(both, both.text(self.style))
            if joined[: len(before)] == before:
                return joined[len(before) :]
        return self._going_on([said])

    def _going_on(self, pieces: Sequence[Piece]) -> list[int]:
        """Tokens of text that isn't the prompt's beginning."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise RequestError("this engine has no tokenizer: prompts of text need one")
        written: list[str] = []
        for piece in pieces:
            if isinstance(piece, RoleMark):
                written.append((self.style.begin if piece.begins else self.style.end)[piece.role])
            elif isinstance(piece, str):
                written.append(self._control.mark(piece).value if self._control is not None else piece)

        def encode(text: str) -> list[int]:
            if self._control is not None:
                return list(self._control.encode(text))
            return list(tokenizer.encode(text, add_special_tokens=False))

        border, text = encode("\n"), "".join(written)
        joined = encode("\n" + text)
        return joined[len(border) :] if joined[: len(border)] == border else encode(text)

    def tokens(self, prompt: Prompt, text: str) -> list[int]:
        encoded = self.encode(prompt, text)
        if isinstance(encoded, str):
            assert self._tokenizer is not None
            return list(self._tokenizer.encode(encoded))
        return encoded


class _ToolUse:
    """Raises RequestError for a tool that can't be used."""

    def __init__(self, sampling: Sampling, tool_format: ToolFormat) -> None:
        self._format = tool_format
        self._offered = [make_tool(tool.name, tool.description, json.loads(tool.parameters)) for tool in sampling.tools]
        self.grammar: Grammar | None = None
        self.parser: ToolCallParser | None = None
        choice, names = sampling.tool_choice, [tool.name for tool in self._offered]
        if choice not in ("auto", "required", "none", *names):
            raise RequestError(
                f"tool_choice={choice!r} is not allowed: it must be auto, required, none or one of {', '.join(names)}"
            )
        if choice != "none":
            only = [tool for tool in self._offered if choice in ("auto", "required", tool.name)]
            how = ToolChoice.AUTO if choice == "auto" else ToolChoice.REQUIRED
            self.grammar = tool_format.grammar(only, how)
            self.parser = ToolCallParser(tool_format)

    def told(self, prompt: Prompt) -> Prompt:
        """The prompt with the tools described: at the end of the first system message, or before everything."""
        description = self._format.describe(self._offered)
        pieces = prompt.pieces
        end = RoleMark("system", False)
        if end in pieces:
            at = pieces.index(end)
            return Prompt.of((*pieces[:at], f"\n\n{description}", *pieces[at:]))
        if prompt.has_roles:
            return Prompt.of((RoleMark("system", True), description, end, *pieces))
        return Prompt.of((f"{description}\n\n", *pieces))


def _to_end_of_branch(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """What stands in a branch, those joined in it included."""
    depth = 1
    for piece in pieces:
        if isinstance(piece, BranchMark):
            depth += 1 if piece.begins else -1
        if not depth:
            return
        yield piece


def _grammar_of(sampling: Sampling) -> Grammar | None:
    shapes = {"regex": sampling.regex, "json_schema": sampling.json_schema, "tools": sampling.tools or None}
    given = [name for name, value in shapes.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} each say what the output looks like: give one of them")
    if sampling.regex is not None:
        return regex(sampling.regex)
    return None if sampling.json_schema is None else json_schema(sampling.json_schema)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise RequestError(f"stop_regex={text!r} is no regular expression of Python's: {error}") from None


def _read_calls(call: Call, parser: ToolCallParser) -> None:
    """Splits the output into what is said and what is called; a call that was cut off is left out."""
    call.written = call.text
    said: list[str] = []
    calls: dict[int, ToolCall] = {}
    arguments: dict[int, str] = {}
    for event in [*parser.push(call.text), *parser.finish()]:
        match event:
            case Content(text):
                said.append(text)
            case CallStart(number, id, name):
                calls[number], arguments[number] = ToolCall(id, name, {}), ""
            case CallArguments(number, text):
                arguments[number] += text
            case CallEnd(number, complete):
                if complete:
                    calls[number] = calls[number]._replace(arguments=json.loads(arguments[number]))
                else:
                    del calls[number]
    call.texts = ("".join(said), *call.texts[1:])
    call.tool_calls = tuple(calls.values())


def _placed(tags: Tags) -> Mapping[str, Any]:
    return tags._asdict()


def _counts(requests: Sequence[Request]) -> dict[str, Any]:
    return {
        "prompt_tokens": sum(request.prompt_tokens for request in requests),
        "cached_tokens": sum(request.n_cached for request in requests),
        "completion_tokens": sum(request.output_tokens for request in requests),
    }


def _reason(request: Request) -> str:
    return request.finish_reason.value if request.finish_reason is not None else "unknown"


def _failure(request: Request) -> str | None:
    if request.finish_reason is FinishReason.ABORT:
        return "it was aborted"
    if request.finish_reason is FinishReason.ERROR:
        return request.error or "the engine gave no reason"
    return None
