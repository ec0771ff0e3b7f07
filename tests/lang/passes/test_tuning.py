"""What was measured is kept, found again, and used."""

import pytest

import lang as sgl
from lang import passes
from lang.backends.mock import MockBackend
from lang.passes.tuning import Entry, TableError, bucket


@sgl.function
def program(s, topic):
    s += topic
    forks = s.fork(4)
    forks += sgl.gen("tip", max_tokens=4)
    forks.join()
    s += "".join(s["tip"]) + sgl.select("best", ["a", "b", "c", "d"], choices_method="greedy_token_selection")


def slow_at(what):
    """A backend whose clock counts steps, and that is slow at one way to make calls."""

    def steps(prompt):
        return 1

    class Slow(MockBackend):
        def generate(self, name, prompt, sampling, tags):
            slow = (what == "together" and sampling.n > 1) or (what == "decode" and sampling.regex is not None)
            self._latency = 50 if slow else 2
            return super().generate(name, prompt, sampling, tags)

        def score(self, *args):
            self._latency = 50 if what == "score" else 2
            return super().score(*args)

    return Slow(reply=lambda _: "a", steps_per_call=steps)


@pytest.mark.parametrize(
    ("what", "select", "siblings"), [("score", "decode", None), ("decode", "score", None), ("together", None, "apart")]
)
def test_the_faster_way_is_found_and_taken(tmp_path, what, select, siblings):
    backend, path = slow_at(what), tmp_path / "deep" / "table.json"
    table = passes.Table.read(path)
    entries = passes.tune(program, [("x",), ("y",)], backend, table, rounds=2)
    assert {entry.operation for entry in entries} == {"select/4", "siblings/4"}
    table.save(path)
    again = passes.Table.read(path)
    assert again.entries == table.entries
    compiled = program.compile(passes=[passes.tuned(again, backend, batch_size=2)])
    if select is not None:
        assert f": {select} (select/4" in compiled.report
        assert (select == "decode") == ("decodes held to its choices" in compiled.report)
    if siblings is not None:
        assert f": {siblings} (siblings/4" in compiled.report
    calls = len(backend.log)
    assert compiled.run("x", backend=backend).error() is None
    made = backend.log[calls:]
    assert any(call.request.pieces and call.meta.get("choices") for call in made) == (select != "decode")


def test_what_was_not_measured_stays_and_is_said():
    compiled = program.compile(passes=[passes.tuned(passes.Table(), MockBackend(), batch_size=8)])
    assert compiled.report.count("was not measured") == 2
    assert compiled.graph == program.trace()


def test_the_nearest_batch_size_counts_and_other_backends_do_not():
    table = passes.Table()
    for batch, best in ((1, "score"), (64, "decode")):
        seconds = {"score": 1.0, "decode": 1.0, best: 0.5}
        table.add(Entry(backend="b", batch=batch, operation="select/4", seconds=seconds, rounds=1))
    assert [table.best("b", n, "select/4") for n in (1, 2, 40, 100)] == ["score", "score", "decode", "decode"]
    assert table.best("other", 1, "select/4") is None
    assert [bucket(n) for n in (1, 2, 3, 64, 100)] == [1, 2, 2, 64, 64]


def test_a_program_that_fails_teaches_nothing():
    backend = MockBackend(reply=lambda _: "no")
    table = passes.Table()

    @sgl.function
    def bad(s):
        s += sgl.select("best", ["a", "b"], choices_method="greedy_token_selection")

    with pytest.raises(sgl.CallError):
        passes.tune(bad, [{}], backend, table, rounds=1)
    assert table.entries == ()


def test_files_that_are_no_tables_are_refused(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"format": 2}')
    with pytest.raises(TableError, match="no table of measurements"):
        passes.Table.read(path)
    with pytest.raises(ValueError, match="1 or more of both"):
        passes.tune(program, [], MockBackend(), passes.Table())
