"""What OpenAI's and SGLang's clients may send and this server doesn't do: refused by name, never ignored.

A value that asks for nothing (null, an empty list, the default) is accepted, because client libraries send those.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from engine.server.errors import ApiError, unsupported


class Unserved(NamedTuple):
    why: str
    """What to do about it."""
    neutral: tuple[Any, ...] = ()
    """Values, besides null, that ask for nothing."""


_ANYWHERE: Mapping[str, Unserved] = {
    "logit_bias": Unserved("give a grammar (regex, choice, ...) to forbid tokens", ({},)),
    "prompt_cache_key": Unserved("prefixes are found in the cache by what they say; leave it out"),
    "prompt_cache_options": Unserved("prefixes are found in the cache by what they say; leave it out", ({},)),
    "prompt_cache_retention": Unserved("the eviction policy decides; leave it out", ("in_memory",)),
    "guided_regex": Unserved("use regex"),
    "guided_json": Unserved("use json_schema"),
    "guided_choice": Unserved("use choice"),
    "guided_grammar": Unserved("use ebnf or lark"),
    "structured_outputs": Unserved("use one of regex, json_schema, choice, ebnf, lark"),
    "structural_tag": Unserved("use tools, or a lark grammar"),
    "skip_special_tokens": Unserved("special tokens have no text here; leave it out", (True,)),
    "spaces_between_special_tokens": Unserved("special tokens have no text here; leave it out", (True,)),
    "include_stop_str_in_output": Unserved("the text ends before the stop string", (False,)),
    "no_stop_trim": Unserved("the text ends before the stop string", (False,)),
    "length_penalty": Unserved("there is no beam search", (1.0, 1)),
    "use_beam_search": Unserved("there is no beam search; use n", (False,)),
    "lora_path": Unserved("one model is served, without adapters"),
}

COMPLETIONS: Mapping[str, Unserved] = {
    **_ANYWHERE,
    "suffix": Unserved("text can't be put in before a suffix; put it into the prompt", ("",)),
    "tools": Unserved("tools are served by /v1/chat/completions", ([],)),
    "prompt_logprobs": Unserved("use echo with logprobs"),
}

CHAT: Mapping[str, Unserved] = {
    **_ANYWHERE,
    "audio": Unserved("the model speaks text only"),
    "modalities": Unserved("the model speaks text only", (["text"], [])),
    "prediction": Unserved("predicted outputs make nothing faster here; leave it out"),
    "web_search_options": Unserved("there is no web search"),
    "functions": Unserved("use tools", ([],)),
    "function_call": Unserved("use tool_choice", ("none", "auto")),
    "reasoning_effort": Unserved("the model's templates have no such setting", ("none",)),
    "verbosity": Unserved("the model's templates have no such setting", ("medium",)),
    "service_tier": Unserved("there is one tier; use priority", ("auto", "default")),
    "store": Unserved("nothing is stored", (False,)),
    "metadata": Unserved("nothing is stored", ({},)),
    "moderation": Unserved("nothing is moderated"),
    "safety_identifier": Unserved("use user"),
    "prompt_logprobs": Unserved("use /v1/completions with echo and logprobs"),
}

NATIVE: Mapping[str, Unserved] = {
    **_ANYWHERE,
    "image_data": Unserved("images are served by /v1/chat/completions", ([],)),
    "audio_data": Unserved("the model reads text only", ([],)),
    "video_data": Unserved("the model reads text only", ([],)),
    "input_embeds": Unserved("give text or input_ids"),
    "rid": Unserved("ids are the server's own; leave it out"),
    "return_hidden_states": Unserved("hidden states don't leave the engine", (False,)),
    "return_text_in_logprobs": Unserved("the text of each token is always there", (True,)),
    "token_ids_logprob": Unserved("use top_logprobs_num", ([],)),
    "session_params": Unserved("send the whole prompt: the cache finds what it knows", ({},)),
    "bootstrap_host": Unserved("prefill and decode run in one engine"),
    "bootstrap_room": Unserved("prefill and decode run in one engine"),
}


def drop_neutral(data: Mapping[str, Any], unserved: Mapping[str, Unserved], served: Collection[str]) -> dict[str, Any]:
    """The body without fields that ask for nothing.

    Raises ApiError (400) that names a field which isn't served, or isn't known.
    """
    kept = {}
    for name, value in data.items():
        if name in served:
            kept[name] = value
        elif name in unserved:
            if value is not None and not any(_same(value, neutral) for neutral in unserved[name].neutral):
                raise unsupported(name, unserved[name].why)
        else:
            raise _unknown(name, served)
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and value == neutral


def _unknown(name: str, served: Collection[str]) -> ApiError:
    near = difflib.get_close_matches(name, served, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; known fields: {', '.join(sorted(served))}"
    return ApiError(400, f"unknown field {name!r:.80}{hint}", param=name[:80], code="unknown_parameter")
