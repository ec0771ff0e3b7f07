"""The Game of 24: arithmetic against brute force, the searches, the published files, GPT-4's recorded decisions."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.make import make_engine
from lang import Runner
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.tree_of_thought import TreeOfThought
from workloads.tree_of_thought.game24 import ANSWER, PROPOSE, VALUE, breadth_first, depth_first, worth
from workloads.tree_of_thought.game24_data import SAMPLE, load_puzzles, reckoned, votes_of
from workloads.tree_of_thought.numbers import (
    as_numbers,
    can_be_24,
    gives_24,
    parsed_step,
    solution,
    steps_from,
    written,
)

REAL = os.environ.get("RADIXLAB_DATA")
HEAD = "Rank,Puzzles,AMT (s),Solved rate,1-sigma Mean (s),1-sigma STD (s)\n"
LOG = "gpt-4_0.7_propose1_value3_greedy5_start900_end1000.json"
FIRST, SECOND, THIRD = "4 * 6 = 24 (left: 1 2 24)", "2 - 1 = 1 (left: 1 24)", "24 / 1 = 24 (left: 24)"
OTHER = "1 + 2 = 3 (left: 3 4 6) (a remark)"
RUN: dict[str, Any] = {
    "steps": [
        {
            "x": "1 2 4 6",
            "ys": [""],
            "new_ys": [f"{OTHER}\n", f"{FIRST}\n", f"{FIRST}\n"],
            "values": [2.001, 60.0, 0],
            "select_new_ys": [f"{FIRST}\n", f"{OTHER}\n"],
        },
        {
            "x": "1 2 4 6",
            "ys": [f"{FIRST}\n", f"{OTHER}\n"],
            "new_ys": [f"{FIRST}\n{SECOND}\n", f"{OTHER}\n4 + 6 = 10 (left: 3 10)\n"],
            "values": [60.0, 0.0],
            "select_new_ys": [f"{FIRST}\n{SECOND}\n"],
        },
        {
            "x": "1 2 4 6",
            "ys": [f"{FIRST}\n{SECOND}\n"],
            "new_ys": [f"{FIRST}\n{SECOND}\n{THIRD}\n"],
            "values": [60.0],
            "select_new_ys": [f"{FIRST}\n{SECOND}\n{THIRD}\n"],
        },
        {
            "x": "1 2 4 6",
            "ys": [f"{FIRST}\n{SECOND}\n{THIRD}\n"],
            "new_ys": [f"{FIRST}\n{SECOND}\n{THIRD}\nAnswer: 4 * 6 / (2 - 1) = 24\n"],
            "values": [60.0],
            "select_new_ys": [f"{FIRST}\n{SECOND}\n{THIRD}\nAnswer: 4 * 6 / (2 - 1) = 24\n"],
        },
    ]
}


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def published(folder: Path, prefixed: bool = False, packed: bool = False, log: Any = (RUN,)) -> str:
    names = ("24__24.csv", f"log_game24__{LOG}") if prefixed else ("24.csv", LOG)
    contents = (f"{HEAD}1,1 2 4 6,4.4,99.20%,4.67,1.48\n2,3 3 8 8,4.4,99%,4.6,1.4\n", json.dumps(log))
    for name, content in zip(names, contents):
        path = folder / "tree_of_thought" / (f"{name}.gz" if packed else name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(folder)


def loaded(outputs: str = "auto", **kwargs: Any) -> TreeOfThought:
    workload = TreeOfThought(task="game24", **kwargs)
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


def brute(numbers: list[Fraction]) -> set[Fraction]:
    """All that can be made of all of them, in the plainest way."""
    if len(numbers) == 1:
        return {numbers[0]}
    made = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        for result in [a + b, a - b, a * b, *([a / b] if b else [])]:
            made |= brute([*rest, result])
    return made


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=4))
def test_what_can_be_24_is_what_brute_force_finds(numbers: list[int]) -> None:
    exact = as_numbers(" ".join(map(str, numbers)))
    possible = Fraction(24) in brute(list(exact))
    assert can_be_24(exact) == possible
    found = solution(exact)
    assert (found is not None) == possible
    if found is not None:
        assert gives_24(found, written(exact))
        assert gives_24(f"{found} = 24", written(exact))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=4))
def test_every_step_is_read_back_as_it_was_written(numbers: list[int]) -> None:
    exact = as_numbers(" ".join(map(str, numbers)))
    steps = list(steps_from(exact))
    assert len({step.left for step in steps}) == len(steps)
    for step in steps:
        assert parsed_step(step.line, exact) == step


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("(6 - 4) * (4 + 8) = 24", True),
        ("4 + 4 + 6 + 8 + 2", False),
        ("4 * 6", False),
        ("(6 - 4) * (4 + 8) * 1", False),
        ("(6 - 4) * 12", False),
        ("4 - 4 + 6 + 8", False),
        ("8 * 6 / (4 - 4)", False),
        ("4 ** 4 - 6 - 8", False),
        ("abs(4) + 4 + 6 + 8", False),
        ("__import__('os').system('x')", False),
        ("-4 * 4 * 6 * 8", False),
        ("(" * 300, False),
        ("9" * 6000, False),
        ("", False),
    ],
)
def test_an_expression_must_use_each_number_once_and_give_24(expression: str, right: bool) -> None:
    assert gives_24(expression, "4 4 6 8") == right


def test_fractions_are_exact() -> None:
    assert gives_24("8 / (3 - 8 / 3)", "3 3 8 8")
    assert not gives_24("8 / (3 - 2.6666666666666665)", "3 8")


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("10 - 4 = 6 (left: 5 6 6)", "5 6 6"),
        ("  4 - 10 = -6 (left: 5 6 -6)  ", "5 6 -6"),
        ("4 / 10 = 2/5 (left: 2/5 5 6)", "2/5 5 6"),
        ("4 / 10 = 0.4 (left: 0.4 5 6) (not whole)", "2/5 5 6"),
        ("4 + 5 = 9 (left: 6 10 9)", "6 9 10"),
        ("4 + 5 = 9 (left: 6 9)", None),
        ("4 + 5 = 9 (left: 6 9 11)", None),
        ("4 + 5 = 9", None),
        ("(left: )", None),
        ("4 / 0 = 1 (left: 1/0 2)", None),
        ("I think (left: all) are", None),
    ],
)
def test_only_a_step_from_the_numbers_before_is_one(line: str, left: str | None) -> None:
    step = parsed_step(line, as_numbers("4 5 6 10"))
    assert (step.left if step else None) == (as_numbers(left) if left else None)


def test_a_slip_is_believed_where_a_record_is_followed() -> None:
    step = parsed_step("10 / 3 ≈ 3.33 (left: ~3.33 5) (not whole)", None)
    assert step is not None
    assert step.left == (Fraction(333, 100), Fraction(5))


@pytest.mark.parametrize(
    ("sum_", "votes"),
    [
        (60.0, ("sure",) * 3),
        (21.001, ("sure", "likely", "impossible")),
        (2.0, ("likely", "likely", "no verdict")),
        (0.0, ("no verdict",) * 3),
    ],
)
def test_votes_add_up_to_the_logs_sums(sum_: float, votes: tuple[str, ...]) -> None:
    assert votes_of(sum_) == votes
    assert worth(votes) == pytest.approx(sum_)
    with pytest.raises(ValueError, match=r"no 3 votes are worth 4\.5"):
        votes_of(4.5)


def test_a_vote_is_its_last_lines_verdict() -> None:
    assert worth(["10 + 14 = 24\nsure", "11 + 2: I'm not sure\nimpossible", "likely\nno idea"]) == pytest.approx(20.001)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("prefixed", [False, True])
def test_the_search_follows_the_logs_decisions(tmp_path: Path, prefixed: bool, packed: bool) -> None:
    workload = loaded(data_dir=published(tmp_path, prefixed, packed), first=0, n_questions=1, keep=2)
    assert workload.data.origin == "files"
    backend = MockBackend()
    (run,) = play(workload, backend)
    asked = [call.prompt for call in backend.log]
    assert asked == [
        f"{PROPOSE}Input: 1 2 4 6\nPossible next steps:\n",
        f"{VALUE}3 4 6\n",
        f"{VALUE}1 2 24\n",
        f"{PROPOSE}Input: 1 2 24\nPossible next steps:\n",
        f"{PROPOSE}Input: 3 4 6\nPossible next steps:\n",
        f"{VALUE}1 24\n",
        f"{VALUE}3 10\n",
        f"{PROPOSE}Input: 1 24\nPossible next steps:\n",
        f"{PROPOSE}Input: 3 10\nPossible next steps:\n",
        f"{VALUE}24\n",
        f"{ANSWER}Input: 1 2 4 6\nSteps:\n{FIRST}\n{SECOND}\n{THIRD}\nAnswer:",
    ]
    assert backend.log[0].text == f"{OTHER}\n{FIRST}\n{FIRST}\n"
    assert backend.log[1].texts == ("likely", "likely", "impossible")
    assert backend.log[6].texts == ("no verdict",) * 3
    assert run.state.ret_value == "4 * 6 / (2 - 1) = 24"
    assert workload.score([run]) == ("solved", 1.0, 1)


def test_thoughts_are_valued_while_others_are_awaited(tmp_path: Path) -> None:
    slow = f"{PROPOSE}Input: 3 4 6\n"
    workload = loaded(data_dir=published(tmp_path), first=0, n_questions=1, keep=2)
    backend = MockBackend(steps_per_call=lambda prompt: 9 if prompt.startswith(slow) else 1)
    runner = Runner(backend)
    (job,) = workload.jobs()
    runner.start(job.program, job.args, name=job.name, sampling={"outputs": job.outputs})
    sent: dict[str, int] = {}
    while runner.active:
        runner.step()
        for call in backend.log:
            sent.setdefault(call.prompt.removeprefix(VALUE), backend.clock.steps)
    assert sent["3 10\n"] - sent["1 24\n"] == 8


def test_recorded_outputs_come_out_of_the_engine(tmp_path: Path) -> None:
    workload = loaded(data_dir=published(tmp_path), first=0, n_questions=1, keep=1)
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    backend = EngineBackend(engine)
    runner = Runner(backend)
    (job,) = workload.jobs()
    run = runner.start(job.program, job.args, name=job.name, sampling={"outputs": job.outputs})
    while runner.active:
        runner.step()
    inner = [child for child in run.children if child.program.name == "propose"]
    assert inner[0].state["steps"] == f"{OTHER}\n{FIRST}\n{FIRST}\n"
    assert [child.state["votes"] for child in run.children if child.program.name == "value"][:2] == [
        ["likely", "likely", "impossible"],
        ["sure", "sure", "sure"],
    ]
    assert run.state.ret_value == "4 * 6 / (2 - 1) = 24"


@pytest.mark.parametrize("search", ["bfs", "dfs"])
@pytest.mark.parametrize("outputs", ["recorded", "fixed"])
def test_one_who_can_reckon_solves_every_puzzle_of_the_sample(search: str, outputs: str) -> None:
    workload = loaded(outputs, search=search, n_questions=None)
    runs = play(workload, MockBackend())
    assert workload.score(runs) == ("solved", 1.0, len(SAMPLE))
    assert all(solution(as_numbers(puzzle)) for puzzle in SAMPLE)


def reckons(prompt: str) -> str:
    """A model that knows the game."""
    asked = prompt.removeprefix(PROPOSE).removeprefix(VALUE).removeprefix(ANSWER)
    if prompt.startswith(PROPOSE):
        left = as_numbers(asked.split("\n")[0].removeprefix("Input: "))
        return "".join(f"{step.line}\n" for step in steps_from(left))
    if prompt.startswith(VALUE):
        return f"let me see\n{'sure' if can_be_24(as_numbers(asked)) else 'impossible'}"
    puzzle = asked.split("\n")[0].removeprefix("Input: ")
    return f" {solution(as_numbers(puzzle))} = 24"


@pytest.mark.parametrize("search", [breadth_first, depth_first])
@pytest.mark.parametrize("puzzle", ["1 2 4 6", "3 3 8 8", "1 1 1 1", "4 4"])
def test_a_free_models_values_lead_the_search(search: Any, puzzle: str) -> None:
    free = {"keep": 40, "max_tokens": 2000, "recorded": reckoned("1 2 3 4", most=1), "follow": False}
    said = search.run(puzzle=puzzle, backend=MockBackend(reply=reckons), **free).ret_value
    assert gives_24(said, puzzle) == (Fraction(24) in brute(list(as_numbers(puzzle))) and len(puzzle.split()) == 4)


def test_a_depth_first_search_goes_back_where_values_misled() -> None:
    puzzle = as_numbers("1 2 4 6")
    dead_end = written(next(step.left for step in steps_from(puzzle) if not can_be_24(step.left)))

    def misled(prompt: str) -> str:
        """Sure of a thought that leads nowhere, and of no other one with three numbers."""
        if prompt == f"{VALUE}{dead_end}\n":
            return "sure"
        said = reckons(prompt)
        three_left = prompt.startswith(VALUE) and len(prompt.removeprefix(VALUE).split()) == 3
        return said.replace("sure", "likely") if three_left else said

    backend = MockBackend(reply=misled)
    free = {"keep": 40, "max_tokens": 2000, "recorded": reckoned("1 2 3 4", most=1), "follow": False}
    state = depth_first.run(puzzle="1 2 4 6", backend=backend, **free)
    assert gives_24(state.ret_value, "1 2 4 6")
    asked = [call.prompt.removeprefix(PROPOSE).split("\n")[0] for call in backend.log if call.name == "steps"]
    assert asked[:2] == ["Input: 1 2 4 6", f"Input: {dead_end}"]
    assert len(asked[2].split()) == 4, "back to another thought with three numbers"


@pytest.mark.parametrize("search", [breadth_first, depth_first])
def test_a_model_that_says_nothing_of_use_ends_the_search(search: Any) -> None:
    free = {"keep": 5, "max_tokens": 200, "recorded": reckoned("1 2 3 4", most=1), "follow": False}
    assert search.run(puzzle="1 2 4 6", backend=MockBackend(), **free).ret_value == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}1,1 2 4,4.4,99%,4,1\n", "24.csv, line 2: '1 2 4' isn't four whole numbers"),
        (f"{HEAD}1,1 2 4 x,4.4,99%,4,1\n", "24.csv, line 2: '1 2 4 x' isn't four whole numbers"),
        (f"{HEAD}1,1 2 4 6\n", "24.csv, line 2: 2 columns, 6 are needed"),
        (HEAD, "24.csv: no puzzles in it; get the file again"),
    ],
)
def test_broken_puzzles_are_named(tmp_path: Path, text: str, message: str) -> None:
    folder = published(tmp_path)
    (tmp_path / "tree_of_thought" / "24.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        loaded(data_dir=folder, first=0)


@pytest.mark.parametrize("log", [{"a": 1}, [{"steps": []}], [{"steps": [{"x": "1 2 3 4"}]}], [[]]])
def test_a_log_of_another_form_is_named(tmp_path: Path, log: Any) -> None:
    with pytest.raises(DataError, match=f"{LOG}: not a log of the Game of 24"):
        loaded(data_dir=published(tmp_path, log=log), first=0)


def test_a_folder_without_puzzles_and_a_first_behind_the_last_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no 24\.csv or 24\.csv\.gz or 24__24\.csv"):
        loaded(data_dir=str(tmp_path))
    with pytest.raises(DataError, match="first=900 leaves no puzzle of 2; give less"):
        loaded(data_dir=published(tmp_path))


def test_puzzles_without_a_log_are_reckoned(tmp_path: Path) -> None:
    folder = published(tmp_path)
    (tmp_path / "tree_of_thought" / LOG).unlink()
    workload = loaded(data_dir=folder, first=0)
    assert workload.score(play(workload, MockBackend())) == ("solved", 1.0, 2)


def test_gpt4s_search_is_replayed_decision_by_decision() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with tree_of_thought/")
    logs = load_puzzles(REAL).logs
    assert len(logs) == 100
    (path,) = (Path(REAL) / "tree_of_thought").glob(f"*{LOG}*")
    runs = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    solved = 0
    for run in runs:
        puzzle = run["steps"][0]["x"]
        backend = MockBackend()
        args = {"puzzle": puzzle, "keep": 5, "max_tokens": 400, "recorded": logs[puzzle], "follow": True}
        state = breadth_first.run(backend=backend, outputs="recorded", **args)
        asked = [call.prompt.removeprefix(PROPOSE) for call in backend.log if call.name == "steps"]
        frontiers = [list(dict.fromkeys(level["ys"])) for level in run["steps"][:3]]
        left = (
            [written(as_numbers(puzzle))]
            + [
                written(parsed_step(steps.rstrip("\n").rpartition("\n")[2], None).left)  # type: ignore[union-attr]
                for frontier in frontiers[1:]
                for steps in frontier
            ]
        )
        assert asked == [f"Input: {numbers}\nPossible next steps:\n" for numbers in left], puzzle
        solved += gives_24(str(state.ret_value), puzzle)
    assert solved == sum(any(info["r"] for info in run["infos"]) for run in runs) == 69
