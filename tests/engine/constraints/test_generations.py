"""Whole generations with random weights: every finished output parses and validates, or matches.

RADIXLAB_GENERATIONS=2000 runs as many as that; as it stands, fewer.
"""

from __future__ import annotations

import json
import os
import re
from itertools import cycle, islice
from typing import NamedTuple

import jsonschema

from engine import EngineConfig, SamplingParams, make_engine
from engine.constraints import Grammar, choices, json_schema, regex
from engine.request import FinishReason
from experiments.bench.maskbench import FILE, load

N = int(os.environ.get("RADIXLAB_GENERATIONS", "240"))
LONGEST = 160
"""Output tokens."""
PROMPTS = ["The city of", "Harry Potter", '{"', "1 2 3", "Dear"]
PATTERNS = [
    r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
    r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day",
    r"[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8}){1,3}",
    r"\{\"x\": -?[0-9]{1,5}, \"y\": -?[0-9]{1,5}\}",
    r"(yes|no|maybe)(, (yes|no|maybe)){0,4}\.",
    r"[^\"\\\n]{1,20}é{2}",
    r"(a|ab)(c|bcd){0,5}d?",
    r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"[\u4e00-\u4e10]{2,4}|[α-ω]{3}",
    r"(?i)hello( world)?!{0,3}",
    r"()|x",
    r"(#[0-9a-fA-F]{6}|rgb\([0-9]{1,3}(, [0-9]{1,3}){2}\)){1,3}",
]
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer", "minimum": -9, "maximum": 99}, "next": {"$ref": "#/$defs/next"}},
    "required": ["v", "next"],
    "additionalProperties": False,
}
SCHEMAS = [
    {"type": "integer", "minimum": 3, "maximum": 12345, "multipleOf": 3},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    {"type": "object", "properties": {"id": {"const": 7}, "tag": {"enum": ["a", "b", None, 1.5, "née"]}}},
    {"type": "string", "minLength": 2, "maxLength": 9},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-C]{2}$"}, {"type": "array", "maxItems": 0}]},
    {**NODE, "$defs": {"next": {"anyOf": [{"type": "null"}, {**NODE}]}}},
    {
        "type": "object",
        "properties": {"when": {"type": "string", "format": "date"}, "id": {"type": "string", "format": "uuid"}},
        "required": ["when", "id"],
        "additionalProperties": False,
    },
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "integer"}}, "additionalProperties": False},
    {
        "type": "object",
        "required": ["a"],
        "additionalProperties": {"type": "integer", "maximum": 5},
        "maxProperties": 3,
    },
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 3}], "items": False},
]


class Wanted(NamedTuple):
    grammar: Grammar
    says: str | dict | list
    """A pattern, a schema, or the texts."""

    def check(self, text: str) -> None:
        if isinstance(self.says, str):
            assert re.fullmatch(self.says, text)
        elif isinstance(self.says, list):
            assert text in self.says
        else:
            validator = jsonschema.validators.validator_for(self.says, default=jsonschema.Draft202012Validator)
            validator(self.says).validate(json.loads(text))


def all_wanted(data_dir):
    """Patterns, schemas of ours and real ones, in turns."""
    named = ["red", "green", "greenish", "blue\n", "ro\u0301t"]
    ours = [*(Wanted(regex(p), p) for p in PATTERNS), Wanted(choices(named), named)]
    schemas = [Wanted(json_schema(schema), schema) for schema in SCHEMAS]
    real = []
    if (data_dir / FILE).is_file():
        real = [Wanted(json_schema(case.schema), case.schema) for case in islice(load(data_dir / FILE), 0, None, 9)]
    return [wanted for group in zip(cycle(ours), cycle(schemas), real or schemas) for wanted in group]


def test_every_finished_output_is_what_its_grammar_says(data_dir):
    engine = make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=20_000, max_running=64))
    wanted = list(islice(cycle(all_wanted(data_dir)), N))
    params = [
        SamplingParams(grammar=each.grammar, max_tokens=LONGEST, temperature=i // 3 % 2, seed=i)
        for i, each in enumerate(wanted)
    ]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(N)]
    requests = [request for (request,) in engine.generate(prompts, params)]
    finished = [i for i, request in enumerate(requests) if request.finish_reason is FinishReason.STOP]
    for i in finished:
        wanted[i].check(requests[i].text)
    refused = [request for request in requests if request.finish_reason is FinishReason.ERROR]
    cut = [request for request in requests if request.finish_reason is FinishReason.LENGTH]
    assert len(finished) + len(refused) + len(cut) == N
    failed_on_the_way = {request.error for request in refused if request.output_tokens}
    assert failed_on_the_way == set()
    assert len(finished) > 0.5 * N
    assert sum(request.constraint.forced_tokens for request in requests if request.constraint) > N
    print(f"{N} generations: {len(finished)} finished, {len(cut)} cut at {LONGEST} tokens, {len(refused)} refused")
