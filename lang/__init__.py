"""A language for programs of many LLM calls, embedded in Python.

import lang as sgl

@sgl.function
def capital(s, country):
    s += f"Q: What is the capital of {country}?\\nA:"
    s += sgl.gen("answer", max_tokens=8, stop="\\n", temperature=0)

capital.run(country="France", backend=backend)["answer"]
"""

from lang.backends.base import Backend, Call, CallError
from lang.choices import greedy_token_selection, token_length_normalized, unconditional_likelihood_normalized
from lang.function import Program, function, set_default_backend
from lang.primitives import gen, select
from lang.runner import ProgramRun, Runner
from lang.state import ProgramState

__all__ = [
    "Backend",
    "Call",
    "CallError",
    "Program",
    "ProgramRun",
    "ProgramState",
    "Runner",
    "function",
    "gen",
    "greedy_token_selection",
    "select",
    "set_default_backend",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
]
