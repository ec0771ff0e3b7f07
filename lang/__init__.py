"""A language for programs of many LLM calls, embedded in Python.

import lang as sgl

@sgl.function
def capital(s, country):
    s += f"Q: What is the capital of {country}?\\nA:"
    s += sgl.gen("answer", max_tokens=8, stop="\\n", temperature=0)

capital.run(country="France", backend=backend)["answer"]
"""

from lang.abstract import TraceError
from lang.backends.base import Backend, Call, CallError
from lang.capabilities import Capabilities, Feature, NotServed
from lang.choices import greedy_token_selection, token_length_normalized, unconditional_likelihood_normalized
from lang.control import apply, cond, loop, pure, switch
from lang.function import Program, flush_cache, function, set_default_backend
from lang.group import ProgramStateGroup
from lang.primitives import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    image,
    movable,
    select,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
)
from lang.program_run import ProgramRun
from lang.runner import Runner
from lang.speculation import SpeculationCount
from lang.state import ProgramState
from lang.tools import Tool, ToolCall

__all__ = [
    "Backend",
    "Call",
    "CallError",
    "Capabilities",
    "Feature",
    "NotServed",
    "Program",
    "ProgramRun",
    "ProgramState",
    "ProgramStateGroup",
    "Runner",
    "SpeculationCount",
    "Tool",
    "ToolCall",
    "TraceError",
    "apply",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "cond",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "greedy_token_selection",
    "image",
    "loop",
    "movable",
    "pure",
    "select",
    "set_default_backend",
    "switch",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]
