"""Line retrieval: the register, prompts in both encodings, what is shared, the score."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.line_retrieval import LineRetrieval
from workloads.line_retrieval.lines import MOST_LINES, Line, cut_in, made_lines
from workloads.line_retrieval.workload import part_texts
from workloads.registry import load_workload


def words(text):
    return len(text.split())


def loaded(outputs="auto", **settings):
    workload = LineRetrieval(**{"n_lines": 10, "n_questions": 3, **settings})
    workload.count_tokens = words
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


def test_every_line_has_a_name_and_a_number_of_its_own():
    lines = made_lines(5000, "0/0")
    assert len({line.name for line in lines}) == len({line.number for line in lines}) == 5000
    assert lines == made_lines(5000, "0/0")
    assert lines != made_lines(5000, "0/1")
    assert (
        made_lines(3, 0)[0].text == f"Register {lines[0].name} holds {lines[0].number}.\n" or len(lines[0].number) == 5
    )


def test_segments_are_of_equal_length_but_for_a_line():
    lines = made_lines(10, "0/0")
    parts = cut_in(lines, 4)
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    assert [line for part in parts for line in part] == lines


@pytest.mark.parametrize("encoding", ["concatenated", "plain"])
def test_the_prompt_is_instruction_lines_and_question_in_both_encodings(encoding):
    workload = loaded(encoding=encoding)
    backend = MockBackend()
    runs = play(workload, backend)
    assert len(backend.log) == 3, "a question is one call: segments are read, nothing is generated in them"
    lines = made_lines(10, "0/0")
    for run, job in zip(runs, workload.jobs()):
        (line,) = (line for line in lines if line.name == job.args["name"])
        assert run.state.text() == (
            "Here is a list of registers, a line each. Remember which number each of them holds.\n"
            + "".join(f"Register {one.name} holds {one.number}.\n" for one in lines)
            + f"The list ends here.\nQuestion: which number does the register {line.name} hold?\n"
            + f"Answer: the number is {line.number}."
        )
    assert backend.log[0].request.has_joined_branches == (encoding == "concatenated")


def test_registers_have_lines_and_questions_of_their_own():
    workload = loaded(n_registers=2)
    assert [job.name for job in workload.jobs()] == [f"line_retrieval/{i}/{j}" for i in range(2) for j in range(3)]
    assert len({job.args["parts"][0] for job in workload.jobs()}) == 2
    assert workload.data.note.startswith("20 lines made by rule for seed=0")


def test_no_line_is_asked_about_twice():
    asked = [job.args["name"] for job in loaded(n_questions=10).jobs()]
    assert len(set(asked)) == 10
    assert asked != [line.name for line in made_lines(10, "0/0")], "in an order of their own"


def test_the_score_is_the_share_of_right_numbers():
    workload = loaded("free")
    numbers = {line.name: line.number for line in made_lines(10, "0/0")}

    def score(change):
        def reply(prompt):
            return change(numbers[prompt.rpartition("the register ")[2].split(" hold?")[0]])

        return workload.score(play(workload, MockBackend(reply=reply)))

    assert score(lambda number: f" {number}, of course") == ("exact match", 1.0, 3)
    assert score(lambda number: f" {number}0") == ("exact match", 0.0, 3)
    assert score(lambda number: f" 1 or {number}") == ("exact match", 0.0, 3), "the first number counts"
    assert score(lambda _: " none") == ("exact match", 0.0, 3)
    assert workload.score([]) is None


@pytest.mark.parametrize("encoding", ["concatenated", "plain"])
def test_on_the_engine_the_register_is_computed_once(encoding):
    workload = loaded(n_lines=40, encoding=encoding)
    backend = EngineBackend(make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=8192)))
    found = []
    for job in workload.jobs():
        state = job.program.run(**job.args, backend=backend, outputs=job.outputs)
        assert state["answer"] == job.args["recorded"]
        found.append(state.get_meta_info("answer"))
    assert found[0]["cached_tokens"] < found[0]["prompt_tokens"] / 4
    assert found[1]["cached_tokens"] > found[1]["prompt_tokens"] * 3 / 4


def test_lines_are_left_out_where_the_context_is_short():
    workload = loaded(max_context_tokens=80)
    backend = MockBackend()
    play(workload, backend)
    assert all(words(call.prompt) + 16 <= 80 for call in backend.log)
    assert sum(map(words, workload.jobs()[0].args["parts"])) == 8 * 4
    assert "8 lines made by rule" in workload.data.note
    assert "2 left out for max_context_tokens=80" in workload.data.note
    with pytest.raises(DataError, match="has room for 2 lines: give more, or fewer n_segments"):
        loaded(max_context_tokens=56)
    with pytest.raises(DataError, match="n_questions=9, but only 8 lines"):
        loaded(max_context_tokens=80, n_questions=9)


def test_the_default_fits_the_tiny_models_context():
    engine = make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=64))
    workload = LineRetrieval()
    workload.load()
    for job in workload.jobs()[:5]:
        text = "".join(job.args["parts"]) + job.args["name"]
        assert len(engine.tokenizer.encode(text)) + 200 < engine.executor.max_context
    assert len(workload.jobs()) == 50
    assert workload.data.sha256.startswith("997893f2a8eb653e"), "the same on every machine; a change must be meant"


def test_warming_up_warms_nothing_that_is_measured():
    workload = loaded()
    (warm,) = workload.warmup()
    assert warm.namespace == "warmup"
    assert warm.args["parts"][0].startswith("Warm-up.\n")
    assert part_texts([Line("a-b", "12345")], 1) == ["Register a-b holds 12345.\n"]


@pytest.mark.parametrize(
    "settings",
    [{"n_lines": 3}, {"n_lines": MOST_LINES + 1}, {"n_segments": 0}, {"encoding": "both"}, {"n_questions": 0}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("line_retrieval", settings)
