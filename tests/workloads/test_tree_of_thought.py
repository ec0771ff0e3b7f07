"""Tree of thought on GSM8K: the tree of calls, its prompts, the vote, what fits. Game of 24: test_game24.py."""

from __future__ import annotations

import os
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang import Runner
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.gsm8k.data import Problem
from workloads.registry import load_workload
from workloads.tree_of_thought import TreeOfThought
from workloads.tree_of_thought.plans import LEVELS, conversation, majority, paths, recorded_outputs

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it."""
PROBLEM = Problem("How much is 2 + 3 - 1?", "2 + 3 = <<2+3=5>>5.\n5 - 1 = <<5-1=4>>4.\n#### 4")


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def loaded(outputs: str = "auto", **settings: Any) -> TreeOfThought:
    workload = TreeOfThought(**settings)
    workload.count_tokens = lambda text: len(text.split())
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


@pytest.mark.parametrize(
    ("depth", "per_level", "temperature"), [(3, [3, 9, 27], 0.3), (4, [2, 4, 8, 16], 0.001), (1, [3], 0.3)]
)
def test_the_papers_trees_have_their_calls_level_by_level(depth: int, per_level: list[int], temperature: float) -> None:
    workload = loaded(n_questions=1, depth=depth)
    assert workload.temperature == temperature
    backend, sent = MockBackend(steps_per_call=2), []
    runner = Runner(backend)
    (job,) = workload.jobs()
    runner.start(job.program, job.args, name=job.name, sampling={"outputs": job.outputs})
    while runner.active:
        runner.step()
        sent.append(len(backend.log))
    assert [call.name for call in backend.log] == [
        level for level, n in zip(LEVELS, per_level, strict=False) for _ in range(n)
    ]
    totals = [sum(per_level[: i + 1]) for i in range(depth)]
    assert list(dict.fromkeys(sent)) == totals, "a level's calls are sent together"
    assert len(sent) == 2 * depth, "and run side by side"


def test_every_call_goes_on_from_its_parents_conversation() -> None:
    workload = loaded(n_questions=1, depth=2, n_branches=2)
    backend = MockBackend()
    play(workload, backend)
    question = workload.jobs()[0].args["question"]
    prompts = [call.prompt for call in backend.log]
    outputs = [call.text for call in backend.log]
    start = f"### user\n{LEVELS['plan'].format(question=question)}\n\n### assistant\n"
    assert prompts[0] == prompts[1] == start
    assert prompts[2] == prompts[3] == f"{start}{outputs[0]}\n\n### user\n{LEVELS['execute']}\n\n### assistant\n"
    assert prompts[4] == prompts[5] == f"{start}{outputs[1]}\n\n### user\n{LEVELS['execute']}\n\n### assistant\n"


def test_recorded_outputs_are_the_solutions_steps_and_differ_between_branches() -> None:
    levels = list(LEVELS)
    outputs = recorded_outputs(PROBLEM, levels, 2)
    assert len(outputs) == len(paths(4, 2)) == 30
    assert len(set(outputs)) == 30
    assert outputs[0] == "Plan 1: take the question apart into 2 steps. Begin with this: 2 + 3 = 5. ..."
    assert outputs[2] == "Way 1.1. 2 + 3 = 5. 5 - 1 = 4. The result is 4."
    assert outputs[6] == "Check 1.1.1. I look at this again: 2 + 3 = 5. It holds, so the result is 4."
    assert outputs[-1] == "(2.2.2.2) The answer is 4."
    assert outputs == recorded_outputs(PROBLEM, levels, 2)


def test_recorded_outputs_come_out_of_the_engine_and_lead_to_the_answer() -> None:
    workload = loaded(n_questions=1, depth=2, n_branches=2)
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=4096))
    (run,) = play(workload, EngineBackend(engine))
    recorded = workload.jobs()[0].args["recorded"]
    assert [call.text for call in run.calls] == recorded
    assert workload.score([run]) == ("accuracy", 1.0, 1)


@pytest.mark.parametrize(
    ("numbers", "most"), [(["4", "5", "4"], "4"), (["5", "4", "4", "5"], "5"), (["", "", "7"], "7"), (["", ""], "")]
)
def test_the_most_frequent_number_wins_the_first_of_equals(numbers: list[str], most: str) -> None:
    assert majority(numbers) == most


def test_the_leaves_of_a_free_model_vote() -> None:
    workload = loaded("free", n_questions=1, depth=2, n_branches=3)
    right = next(iter(workload._answers.values()))

    def said(n_wrong: int) -> float:
        seen = iter(range(100))
        backend = MockBackend(reply=lambda _: f"so {'99999' if next(seen) - 3 < n_wrong else right}")
        (run,) = play(workload, backend)
        score = workload.score([run])
        assert score is not None
        return score.value

    assert [said(n) for n in (0, 4, 5, 9)] == [1.0, 1.0, 0.0, 0.0]
    (silent,) = play(workload, MockBackend(reply=lambda _: "I don't know"))
    assert workload.score([silent]) == ("accuracy", 0.0, 1)
    assert workload.score([]) is None


def test_outputs_are_cut_until_a_leafs_conversation_fits() -> None:
    words = len(conversation(loaded(n_questions=1).jobs()[0].args["question"], list(LEVELS)[:3]).split())
    (job,) = loaded(n_questions=1, max_context_tokens=words + 3 * 10 + 2).jobs()
    assert job.args["max_tokens"] == 10
    (job,) = loaded(n_questions=1, max_context_tokens=10_000).jobs()
    assert job.args["max_tokens"] == 256
    with pytest.raises(DataError, match=f"max_context_tokens={words} leaves no room for 3 outputs behind a prompt"):
        loaded(n_questions=1, max_context_tokens=words)


def test_no_prompt_and_output_exceed_the_context() -> None:
    workload = loaded(n_questions=2, max_context_tokens=150)
    backend = MockBackend()
    play(workload, backend)
    assert all(len(call.prompt.split()) + call.meta["completion_tokens"] <= 150 for call in backend.log)


def test_a_branch_ends_where_its_output_is_longer_when_read_again() -> None:
    workload = TreeOfThought(n_questions=1, n_branches=2, max_context_tokens=200)
    workload.count_tokens = lambda text: len(text.split()) + 9 * text.count("¤")
    workload.choose_outputs("free", random_weights=True)
    workload.load()
    right = workload._answers["tree_of_thought/0"]
    backend = MockBackend(reply=lambda _: f"¤ ¤ ¤ ¤ ¤ ¤ ¤ ¤ ¤ ¤ {right}")
    (run,) = play(workload, backend)
    assert [call.name for call in backend.log] == ["plan"] * 2, "ten signs are a hundred tokens"
    assert workload.score([run]) == ("accuracy", 1.0, 1), "what was said until then votes"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "chess"}, "task='chess' is not allowed: it must be one of gsm8k, game24"),
        ({"search": "a*"}, "search='a\\*' is not allowed: it must be one of bfs, dfs"),
        ({"depth": 5}, "depth=5 is not allowed: the levels are plan, execute, reflect, answer"),
        ({"n_branches": 0}, "n_branches=0 is not allowed"),
        ({"keep": 0}, "keep=0 is not allowed"),
        ({"temperature": -0.1}, "temperature=-0.1 is not allowed: it must be a number, 0 or more"),
        ({"temperature": True}, "temperature=True is not allowed"),
        ({"max_context_tokens": 0}, "max_context_tokens=0 is not allowed"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_workload("tree_of_thought", settings)


def test_the_real_problems() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with gsm8k/")
    workload = loaded(data_dir=REAL, n_questions=3)
    backend = MockBackend()
    runs = play(workload, backend)
    assert len(backend.log) == 3 * 39
    assert workload.score(runs) == ("accuracy", 1.0, 3)
    assert workload.data.origin == "files"
