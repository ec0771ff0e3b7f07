"""Output that must match a grammar.

    from engine.constraints import json_schema
    engine.generate(prompts, SamplingParams(grammar=json_schema(MyModel)))

Importing this loads no grammar library; the first constrained request does.
"""

from engine.constraints.base import GrammarError
from engine.constraints.grammar import (
    Grammar,
    Kind,
    ToolChoice,
    any_json,
    choices,
    ebnf,
    json_schema,
    lark,
    regex,
    tools,
)

__all__ = [
    "Grammar",
    "GrammarError",
    "Kind",
    "ToolChoice",
    "any_json",
    "choices",
    "ebnf",
    "json_schema",
    "lark",
    "regex",
    "tools",
]
