"""The benchmark of constrained decoding asks for what the published one did, and its figures are what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engine.tokenizer import builtin_tokenizer
from experiments.bench.constraint_decoding import OUTPUTS_A_ROW, Bench, PassCost, forced_price
from experiments.bench.constraint_inputs import CHARACTER, CITY, Task, tasks, vocabularies
from experiments.bench.constraint_masks import regex_cost
from experiments.bench.constraints import main

ANSWER = Task("answer", r'\{"answer": "(yes|no)", "times": [0-9]\}', ["Is it?", "Was it?", "Will it be?"])


def test_records_of_the_published_form_match() -> None:
    wand = {"wood": "Holly", "core": "Phoenix feather", "length": 11.0}
    known = {"name": "Harry Potter", "house": "Gryffindor", "blood status": "Half-blood", "occupation": "student"}
    character = {**known, "wand": wand, "alive": "Alive", "patronus": "Stag", "bogart": "Dementor"}
    assert re.fullmatch(CHARACTER, json.dumps(character, indent=4))
    assert not re.fullmatch(CHARACTER, json.dumps({**character, "house": "Hogwarts"}, indent=4))
    city = (
        '{\n  "name": "Paris",\n  "country": "France",\n  "latitude": 48.86,\n  "population": 2102650,\n'
        '  "top 3 landmarks": ["Eiffel Tower", "Louvre", "Notre Dame"]\n}'
    )
    assert re.fullmatch(CITY, city)


def test_a_forced_token_is_priced_by_what_it_adds_to_a_pass() -> None:
    costs = [PassCost(1, 1, 2.0), PassCost(1, 8, 9.0), PassCost(16, 1, 4.0), PassCost(16, 8, 4.0)]
    assert forced_price(costs, 1) == 0.5
    assert forced_price(costs, 16) == 0.0


def test_decoding_is_compared_over_the_same_outputs() -> None:
    bench = Bench("tiny", "float64", None, "fsm", batch=2, pool_tokens=2048)
    costs = bench.pass_costs(ANSWER, repeats=1)
    assert [cost.n_new for cost in costs] == [1, 4, 8, 16]
    row = bench.decoding(ANSWER, rounds=2, costs=costs)
    n = 2 * OUTPUTS_A_ROW
    chosen = round(row.tokens * (1 - row.forced_share))
    assert chosen >= 2 * n, "each output has an answer and a number to choose"
    assert row.bound == pytest.approx(row.tokens / chosen)
    assert 1 <= row.bound_here <= row.bound
    saved = {jump: engine.constraints.counts.passes_saved for jump, engine in bench.engines.items()}
    assert saved[False] == 0
    assert saved[True] == pytest.approx(3 * row.tokens * row.forced_share), "no pass is spent on a forced token"
    for engine in bench.engines.values():
        assert engine.memory.cache.cached_tokens < 200, "prompts are kept, outputs aren't"


def test_backends_force_the_same_share_of_a_regex() -> None:
    rows = [regex_cost(ANSWER, name, "512", builtin_tokenizer(), repeats=2) for name in ("fsm", "llguidance")]
    for row in rows:
        assert (row.compiled, row.refused) == (2, 0)
        assert row.masks > 0
    assert rows[0].forced_share == rows[1].forced_share


def test_a_regex_that_a_backend_refuses_is_counted_as_refused() -> None:
    row = regex_cost(ANSWER._replace(pattern="("), "fsm", "512", builtin_tokenizer(), repeats=2)
    assert (row.compiled, row.refused, row.masks, row.mask_us_p50, row.forced_share) == (0, 1, 0, None, None)


def test_real_data_has_the_published_size(data_dir: Path) -> None:
    character, city = tasks(data_dir, page_characters=100)
    assert (len(character.prompts), len(city.prompts)) == (50, 22)
    sizes = {name: tokenizer.vocab_size for name, tokenizer in vocabularies(data_dir).items()}
    assert sizes == {"32k": 32_000, "100k": 100_257}


def test_without_data_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    assert main([]) == 2
