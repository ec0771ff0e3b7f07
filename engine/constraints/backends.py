"""Grammar libraries by name. A library is imported when it's made, not before."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from engine.config import ConfigError
from engine.constraints.base import Backend, GrammarLimits
from engine.policies.names import unknown_name
from engine.tokenizer import Tokenizer

BACKENDS = {
    "llguidance": "engine.constraints.llg:LLGuidance",
    "xgrammar": "engine.constraints.xgr:XGrammar",
    "fsm": "engine.constraints.fsm.backend:FsmBackend",
}


def check_backend(name: str) -> None:
    """Raises ConfigError for a name that isn't known."""
    if name not in BACKENDS:
        raise ConfigError(unknown_name("grammar backend", name, BACKENDS))


def make_backend(
    name: str, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int], limits: GrammarLimits | None = None
) -> Backend:
    """A grammar library set up for one tokenizer.

    vocab_size: of the model's logits, at least the tokenizer's. eos: the ids that end an output.
    Raises ConfigError for a name that isn't known and for a library that isn't installed.
    """
    check_backend(name)
    module, _, cls = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), cls)(
        tokenizer, vocab_size=vocab_size, eos=tuple(eos), limits=limits or GrammarLimits()
    )
    return backend
