"""Joined prompts against transformers in float64: each branch alone, its keys turned on, and a tail that sees all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.cpu import CpuExecutor
from engine.models import load_model
from engine.request import Request, SamplingParams
from engine.splices import JoinedPrompt, concatenated

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "initializer_range": 0.2,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 48}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
}
N_OUTPUT = 5


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    name, own = FAMILIES[request.param]
    torch.manual_seed(3)
    made = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**SHAPE, **own), attn_implementation="eager"
    ).eval()
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    return made.to(torch.float64), folder


class Reference:
    """K and V of a prompt as they come together, a pair a layer, keys as they are after the rotary embedding."""

    def __init__(self, model: Any, layers: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()) -> None:
        self.model = model
        self.layers = list(layers)
        self.logits = torch.empty(0)

    def __len__(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def copy(self) -> Reference:
        return Reference(self.model, self.layers)

    def append(self, tokens: Sequence[int]) -> None:
        cache = transformers.DynamicCache()
        for i, (k, v) in enumerate(self.layers):
            cache.update(k, v, i)
        positions = torch.arange(len(self), len(self) + len(tokens))[None]
        with torch.no_grad():
            out = self.model(torch.tensor([list(tokens)]), position_ids=positions, past_key_values=cache)
        self.layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        self.logits = out.logits[0]

    def join(self, branches: Sequence[Reference]) -> None:
        fork = len(self)
        for branch in branches:
            n, at = len(branch) - fork, len(self)
            old, new = torch.arange(fork, fork + n), torch.arange(at, at + n)
            self.layers = [
                (torch.cat([k, self._turned(bk[:, :, fork:], old, new)], 2), torch.cat([v, bv[:, :, fork:]], 2))
                for (k, v), (bk, bv) in zip(self.layers, branch.layers, strict=True)
            ]

    def _turned(self, k: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Turned back by its old positions, which undoes the factor of the embedding twice, and on by the new ones."""
        rotary = self.model.model.rotary_emb
        (c, s), (d, t) = rotary(k.float(), old[None]), rotary(k.float(), new[None])
        square = (c.double() ** 2 + s.double() ** 2)[:, None]
        flip = torch.cat([-k[..., k.shape[-1] // 2 :], k[..., : k.shape[-1] // 2]], -1)
        plain = (k * c.double()[:, None] - flip * s.double()[:, None]) / square
        flip = torch.cat([-plain[..., k.shape[-1] // 2 :], plain[..., : k.shape[-1] // 2]], -1)
        return plain * d.double()[:, None] + flip * t.double()[:, None]

    def go_on(self, n: int) -> tuple[list[int], list[float]]:
        """Greedy tokens and their log-probabilities."""
        tokens, logprobs = [], []
        for _ in range(n):
            scores = self.logits[-1].log_softmax(-1)
            tokens.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
            self.append(tokens[-1:])
        return tokens, logprobs


def tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, n).tolist()


def engine_of(folder: Path, page_size: int, **settings: Any) -> Engine:
    executor = CpuExecutor(load_model(folder, dtype=torch.float64), n_pages=640 // page_size, page_size=page_size)
    config = {"max_batch_tokens": 64, "max_running": 8, "page_size": page_size, "dtype": "float64", **settings}
    return Engine(executor, None, EngineConfig(**config))


PARAMS = SamplingParams(max_tokens=N_OUTPUT, temperature=0.0, logprobs=0)


def assert_answers(request: Request, expected: Reference) -> None:
    assert request.error is None
    chosen, logprobs = expected.go_on(N_OUTPUT)
    assert list(request.output) == chosen
    assert [one.logprob for one in request.logprobs] == pytest.approx(logprobs, abs=1e-5)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("lengths", [(9,), (9, 21), (17, 5, 12), (4, 0, 7)])
@pytest.mark.parametrize("settings", [{}, {"cache": "none"}, {"overlap": True, "max_batch_tokens": 8}])
def test_branches_see_their_prefix_and_the_tail_sees_all(
    model: tuple[Any, Path], page_size: int, lengths: tuple[int, ...], settings: dict[str, Any]
) -> None:
    hf, folder = model
    base, tail = tokens(19, 0), tokens(6, 1)
    branches = [tokens(n, 10 + i) for i, n in enumerate(lengths)]
    expected = Reference(hf)
    expected.append(base)
    grown = [expected.copy() for _ in branches]
    for one, own in zip(grown, branches):
        if own:
            one.append(own)
    expected.join(grown)
    expected.append(tail)
    engine = engine_of(folder, page_size, **settings)
    prompt, splices = concatenated(base, branches, tail)
    (request,) = engine.add(prompt, PARAMS, splices=splices)
    engine.run()
    engine.check()
    assert_answers(request, expected)


@pytest.mark.parametrize("page_size", [1, 16])
def test_branches_within_branches_and_joins_after_joins(model: tuple[Any, Path], page_size: int) -> None:
    hf, folder = model

    def write(kind: Any) -> Any:
        def appended(to: Any, n: int, seed: int) -> Any:
            to.append(tokens(n, seed))
            return to

        s = appended(kind, 13, 0)
        one, two = (appended(s.copy(), 7 + i, 20 + i) for i in range(2))
        two.join([appended(two.copy(), 5 + i, 30 + i) for i in range(3)])
        appended(two, 4, 40)
        s.join([one, two])
        appended(s, 6, 41)
        s.join([appended(s.copy(), 3 + i, 50 + i) for i in range(2)])
        s.join([appended(s.copy(), 9 - i, 60 + i) for i in range(2)])
        return appended(s, 5, 42)

    expected, prompt = write(Reference(hf)), write(JoinedPrompt())
    engine = engine_of(folder, page_size)
    (request,) = engine.add(prompt.tokens, PARAMS, splices=prompt.splices)
    engine.run()
    engine.check()
    assert_answers(request, expected)


def test_without_a_tail_the_last_token_of_the_last_branch_sees_all(model: tuple[Any, Path]) -> None:
    hf, folder = model
    base, one, two = tokens(11, 0), tokens(6, 1), tokens(7, 2)
    expected = Reference(hf)
    expected.append(base)
    branches = [expected.copy() for _ in range(2)]
    branches[0].append(one)
    branches[1].append(two[:-1])
    expected.join(branches)
    expected.append(two[-1:])
    engine = engine_of(folder, 1)
    prompt, splices = concatenated(base, [one, two], [])
    (request,) = engine.add(prompt, PARAMS, splices=splices)
    engine.run()
    assert_answers(request, expected)


def test_what_the_branches_computed_is_not_computed_again(model: tuple[Any, Path]) -> None:
    _, folder = model
    base, tail = tokens(40, 0), tokens(3, 1)
    engine = engine_of(folder, 1)
    branches = []
    for i in range(3):
        own = tokens(5, 10 + i)
        (request,) = engine.add([*base, *own], PARAMS)
        engine.run()
        branches.append([*own, *request.output])
    prompt, splices = concatenated(base, branches, tail)
    n_before = sum(step.n_prefill for step in engine.metrics.steps)
    (request,) = engine.add(prompt, SamplingParams(max_tokens=1), splices=splices)
    engine.run()
    n_computed = sum(step.n_prefill for step in engine.metrics.steps) - n_before
    assert n_computed == 3 + len(tail), "the last token of each branch's output, and the tail"
    assert request.n_cached == len(prompt) - n_computed
    n_before = sum(step.n_prefill for step in engine.metrics.steps)
    engine.add(prompt, SamplingParams(max_tokens=1))
    engine.run()
    as_text = sum(step.n_prefill for step in engine.metrics.steps) - n_before
    assert as_text == 2 * 10 + len(tail), "as text, all branches but the first are computed again"
