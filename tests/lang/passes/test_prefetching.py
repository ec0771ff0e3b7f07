"""The engine hears at the start of prefixes to come."""

import lang as sgl
from engine import EngineConfig, make_engine
from lang import passes
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend

LONG = "You are a careful judge of essays, and you give marks from one to ten, with reasons. "
EXAMPLES = "Here are three essays that got a ten, and three that got a one; read all of them. "


@sgl.function
def judge(s, essay):
    s += "Essay: " + essay + sgl.gen("summary", max_tokens=8)
    s += sgl.gen("thought", max_tokens=8)
    other = verdict(s["summary"])
    s += other["mark"]


@sgl.function
def verdict(s, summary):
    s += LONG + EXAMPLES + summary + sgl.gen("mark", max_tokens=4)


def test_a_prefix_that_is_used_later_is_hinted_at_with_its_distance():
    backend = MockBackend()
    compiled = judge.compile(passes=[passes.prefetch()])
    state = compiled.run("text", backend=backend)
    assert state.text() == judge.run("text", backend=MockBackend()).text()
    assert [(hint.prefix.text(), hint.steps) for hint in backend.hints] == [(LONG + EXAMPLES, 1)]
    assert "is used in 1 calls" in compiled.report


def test_arguments_are_part_of_what_is_known():
    @sgl.function
    def program(s, rules):
        s += sgl.gen("a")
        s += verdict_by(rules, s["a"])

    @sgl.function
    def verdict_by(s, rules, text):
        s += LONG + rules + text + sgl.gen("mark")

    backend = MockBackend()
    program.compile(passes=[passes.prefetch()]).run("Be kind. ", backend=backend)
    assert backend.hints[0].prefix.text() == LONG + "Be kind. "


def test_short_prefixes_and_first_calls_are_not_worth_a_hint():
    @sgl.function
    def program(s):
        s += LONG + sgl.gen("a")
        child = short(s["a"])
        s += child["b"]

    @sgl.function
    def short(s, a):
        s += "Hm. " + a + sgl.gen("b")

    backend = MockBackend()
    program.compile(passes=[passes.prefetch()]).run(backend=backend)
    assert backend.hints == []


def test_calls_in_conds_and_loops_count_too():
    @sgl.function
    def program(s):
        s += sgl.gen("a")

        def judged(s):
            s += verdict(s["a"])

        sgl.cond(s, s["a"] == "ok", judged)
        sgl.loop(s, lambda s, _: judged(s), limit=2)

    backend = MockBackend()
    program.compile(passes=[passes.prefetch()]).run(backend=backend)
    assert [hint.steps for hint in backend.hints] == [1]


def test_the_engine_gets_it_before_the_first_call():
    engine = make_engine(EngineConfig(device="cpu", pool_tokens=4096))
    judge.compile(passes=[passes.prefetch()]).run("text", backend=EngineBackend(engine), temperature=0)
    kinds = [event.kind for event in engine.log.inputs() if event.kind in ("hint", "arrive")]
    assert kinds[0] == "hint"
