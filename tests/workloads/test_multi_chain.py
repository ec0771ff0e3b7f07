"""Multi-chain reasoning: the fork and what follows it, its prompts, its recorded chains, what fits, the score."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.gsm8k.data import Problem
from workloads.multi_chain import MultiChain
from workloads.multi_chain.program import STYLES
from workloads.multi_chain.workload import recorded_chain
from workloads.registry import load_workload


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def loaded(outputs: str = "auto", **settings: Any) -> MultiChain:
    workload = MultiChain(**settings)
    workload.count_tokens = lambda text: len(text.split())
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


def test_chains_run_side_by_side_and_the_answer_sees_them_all() -> None:
    workload = loaded("free", n_questions=1, n_chains=2)
    backend = MockBackend(reply=lambda prompt: " seven. \nQuestion: more" if "Answer:" in prompt[-8:] else " 7.\nno")
    (run,) = play(workload, backend)
    question = f"Question: {workload.jobs()[0].args['question']}\n"
    assert [call.prompt for call in backend.log] == [
        f"{question}{STYLES[0]}\nAnswer:",
        f"{question}{STYLES[1]}\nAnswer:",
        f"{question}Several people have answered this question:\nAnswer 1: seven.\nAnswer 2: seven.\n"
        "Taking them together, the number asked for is",
    ]
    assert backend.clock.steps == 2, "the chains are one step together, the answer another"
    assert run.state["answer"] == " 7."


def test_there_are_five_chains_in_the_styles_in_turn() -> None:
    backend = MockBackend()
    play(loaded(n_questions=1), backend)
    assert [call.name for call in backend.log] == ["chain"] * 5 + ["answer"]
    assert len(STYLES) == 6
    backend = MockBackend()
    play(loaded(n_questions=1, n_chains=8), backend)
    styles = [call.prompt.split("\n")[1] for call in backend.log[:8]]
    assert styles == [*STYLES, *STYLES[:2]]


def test_recorded_chains_are_the_solution_and_no_two_begin_alike() -> None:
    problem = Problem("q", "2 + 3 = <<2+3=5>>5.\n#### 5")
    chains = [recorded_chain(problem, i) for i in range(8)]
    assert chains[1] == " (2, known) 2 + 3 = 5. So the answer is 5.\n"
    assert len({chain[:5] for chain in chains}) == 8


def test_recorded_outputs_come_out_of_the_engine_and_are_right() -> None:
    workload = loaded(n_questions=2, n_chains=3)
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    runs = play(workload, EngineBackend(engine))
    for run, job in zip(runs, workload.jobs(), strict=True):
        assert run.state["chain"] == list(job.args["chains"])
        assert run.state["answer"] == job.args["answer"]
    assert workload.score(runs) == ("accuracy", 1.0, 2)


@pytest.mark.parametrize(("number", "share"), [("right", 1.0), ("99999", 0.0)])
def test_the_merged_answers_last_number_is_scored(number: str, share: float) -> None:
    workload = loaded("free", n_questions=1)
    right = workload.jobs()[0].args["answer"].strip(" .")
    said = right if number == "right" else number
    backend = MockBackend(reply=lambda prompt: " 5" if prompt.endswith("Answer:") else f" not 5 but {said}.")
    assert workload.score(play(workload, backend)) == ("accuracy", share, 1)
    assert workload.score([]) is None


def test_chains_are_cut_until_all_of_them_and_the_answer_fit() -> None:
    whole = MockBackend()
    play(loaded("fixed", n_questions=1), whole)
    assert whole.log[-1].meta["prompt_tokens"] + 16 > 200
    backend = MockBackend()
    workload = loaded("fixed", n_questions=3, max_context_tokens=150)
    play(workload, backend)
    assert all(5 <= job.args["max_tokens"] < 256 for job in workload.jobs())
    assert all(call.meta["prompt_tokens"] + call.meta["completion_tokens"] <= 150 for call in backend.log)
    with pytest.raises(DataError, match="max_context_tokens=60 leaves no room for 5 outputs behind a prompt of"):
        loaded(n_questions=1, max_context_tokens=60)


def test_a_chain_that_is_longer_when_read_again_is_cut() -> None:
    workload = MultiChain(n_questions=1, max_context_tokens=150)
    workload.count_tokens = lambda text: len(text.split()) + 9 * text.count("¤")
    workload.choose_outputs("free", random_weights=True)
    workload.load()
    (job,) = workload.jobs()
    backend = MockBackend(reply=lambda _: "¤ " * 30)
    play(workload, backend)
    assert workload.count_tokens(backend.log[0].text) > job.args["max_tokens"]
    assert workload.count_tokens(backend.log[-1].prompt) + 16 <= 150
    assert "¤" in backend.log[-1].prompt


def test_warming_up_is_in_a_namespace_of_its_own() -> None:
    workload = loaded()
    questions = {job.args["question"] for job in workload.jobs()}
    for warm in workload.warmup():
        assert warm.namespace == "warmup"
        assert warm.args["question"] not in questions


@pytest.mark.parametrize(
    "settings",
    [{"n_questions": 0}, {"n_chains": 0}, {"max_tokens": 0}, {"temperature": "hot"}, {"max_context_tokens": 0}],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("multi_chain", settings)
