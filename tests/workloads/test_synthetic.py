"""Generated traffic: its laws, its exact lengths, its exact sharing."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from itertools import islice, pairwise
from statistics import fmean, pstdev

import pytest
from hydra.core.global_hydra import GlobalHydra

import run
from engine.config import EngineConfig
from engine.make import make_engine
from engine.tokenizer import builtin_tokenizer
from experiments.infinite_cache import infinite_hits
from lang import Runner
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from workloads.data import DataError
from workloads.exact_text import ExactText
from workloads.registry import load_workload
from workloads.synthetic import Synthetic
from workloads.synthetic.laws import Lengths, Zipf, arrivals, geometric
from workloads.synthetic.traffic import plans, shared_by_brute_force

UNIQUE = {"n_prefixes": 0, "agents": 0, "turns": 1}


def count(text):
    return len(builtin_tokenizer().encode(text))


def loaded(**kwargs):
    workload = Synthetic(**kwargs)
    workload.count_tokens = count
    workload.choose_outputs(workload.asked_outputs, random_weights=True)
    workload.load()
    return workload


@pytest.fixture(scope="module")
def engine():
    return make_engine(EngineConfig(model="tiny", pool_tokens=120_000))


# ---- laws


def gaps(process, n=8000, **kwargs):
    law = {"rate": 4.0, "cv": 3.0, "on_s": 5.0, "off_s": 15.0, **kwargs}
    times = list(islice(arrivals(process, rng=random.Random(1), **law), n))
    return times, [after - before for before, after in pairwise(times)]


def test_poisson_gaps_are_exponential():
    _, found = gaps("poisson")
    assert fmean(found) == pytest.approx(1 / 4, rel=0.05)
    assert pstdev(found) / fmean(found) == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("cv", [0.3, 3.0])
def test_gamma_gaps_have_their_coefficient_of_variation(cv):
    _, found = gaps("gamma", cv=cv)
    assert fmean(found) == pytest.approx(1 / 4, rel=0.15)
    assert pstdev(found) / fmean(found) == pytest.approx(cv, rel=0.2)


def test_onoff_traffic_keeps_its_rate_and_is_silent_most_of_the_time():
    times, found = gaps("onoff", n=60_000)
    assert len(times) / times[-1] == pytest.approx(4, rel=0.2)
    silence = sum(gap for gap in found if gap > 1)
    assert silence / times[-1] == pytest.approx(15 / 20, abs=0.1)
    assert all(gap >= 0 for gap in found)


def test_prefixes_are_zipf():
    zipf, rng = Zipf(10, 1.5), random.Random(2)
    assert sum(zipf.shares) == pytest.approx(1)
    drawn = Counter(zipf.draw(rng) for _ in range(20_000))
    for k in range(10):
        assert drawn[k] / 20_000 == pytest.approx(zipf.shares[k], abs=0.015)
    assert zipf.shares[0] / zipf.shares[3] == pytest.approx(4**1.5)
    assert set(Zipf(4, 0).shares) == {0.25}


def test_lengths_are_lognormal_with_the_mean_and_the_variation_given():
    rng = random.Random(3)
    drawn = [Lengths(200, 0.8).draw(rng) for _ in range(20_000)]
    assert fmean(drawn) == pytest.approx(200, rel=0.04)
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(0.8, rel=0.1)
    assert {Lengths(7, 0).draw(rng) for _ in range(9)} == {7}
    assert min(Lengths(1, 3).draw(rng) for _ in range(999)) == 1


def test_rounds_are_geometric():
    rng = random.Random(4)
    drawn = [geometric(4, rng) for _ in range(20_000)]
    assert fmean(drawn) == pytest.approx(4, rel=0.05)
    assert drawn.count(1) / 20_000 == pytest.approx(1 / 4, abs=0.02)
    assert {geometric(1, rng) for _ in range(50)} == {1}


def test_programs_have_their_kinds_pauses_and_rounds():
    law = Synthetic(agents=0.3, turns=3, steps=8, think_s=2, tool_s=0.5).law
    made = plans(law, 3000, seed=5)
    agents = [plan for plan in made if plan.agent]
    others = [plan for plan in made if not plan.agent]
    assert len(agents) / 3000 == pytest.approx(0.3, abs=0.04)
    assert fmean(len(plan.rounds) for plan in agents) == pytest.approx(8, rel=0.12)
    assert fmean(len(plan.rounds) for plan in others) == pytest.approx(3, rel=0.12)
    assert fmean(one.pause_s for plan in agents for one in plan.rounds[1:]) == pytest.approx(0.5, rel=0.1)
    assert fmean(one.pause_s for plan in others for one in plan.rounds[1:]) == pytest.approx(2, rel=0.1)
    assert {plan.rounds[0].pause_s for plan in made} == {0.0}


def test_a_program_is_the_same_however_many_there_are():
    law = Synthetic().law
    assert plans(law, 40, 7)[:10] == plans(law, 10, 7)
    assert plans(law, 10, 8) != plans(law, 10, 7)
    assert {plan.at for plan in plans(Synthetic(arrivals="none").law, 3, 0)} == {None}


# ---- lengths and sharing


def served(engine, workload):
    """Requests of each job, one job after the other."""
    engine.flush_cache()
    runner, calls = Runner(EngineBackend(engine)), []
    for job in workload.jobs():
        played = runner.start(job.program, job.args, name=job.name, sampling={"outputs": job.outputs})
        while runner.active:
            runner.step()
        assert played.status == "done", played.error
        calls.append([request for call in played.calls for request in call.requests])
    return calls


SMALL = {"n_programs": 14, "n_prefixes": 4, "prefix_tokens": 60, "message_tokens": 20, "tool_tokens": 15}


@pytest.mark.parametrize("kwargs", [{}, {"agents": 1, "steps": 4}, UNIQUE], ids=["mixed", "agents", "unique"])
def test_an_endless_cache_finds_what_brute_force_says(engine, kwargs):
    quick = {**SMALL, "output_tokens": 6, "think_s": 0.001, "tool_s": 0.001, "seed": 1, **kwargs}
    workload = loaded(**quick)
    found = served(engine, workload)
    opening = ExactText(count).opening
    expected = shared_by_brute_force(workload.scripts, opening)
    assert [[r.prompt_tokens for r in calls] for calls in found] == [[c.prompt_tokens for c in cs] for cs in expected]
    assert [[r.n_cached for r in calls] for calls in found] == [[c.shared_tokens for c in cs] for cs in expected]
    flat = [request for calls in found for request in calls]
    assert infinite_hits(flat) == [request.n_cached for request in flat]
    rate = sum(r.n_cached for r in flat) / sum(r.prompt_tokens for r in flat)
    assert rate == pytest.approx(workload.endless_hit_rate)
    assert f"an endless cache finds {rate:.1%}" in workload.data.note


def test_brute_force_by_hand():
    workload = loaded(**SMALL, agents=0, turns=2, seed=3)
    first, *_ = workload.scripts
    again = shared_by_brute_force([first, first], 1)
    said = 1
    for turn, fresh, known in zip(first.turns, again[0], again[1], strict=True):
        before = said
        said += len(turn.text)
        assert fresh == (said, max(0, before - 1)), "all before but the last token of the output, whose KV nobody has"
        assert known == (said, said - 1), "all but the prompt's last token"
        said += len(turn.output)


def test_outputs_are_as_long_as_drawn_and_what_was_recorded(engine):
    workload = loaded(**SMALL, seed=2, think_s=0, tool_s=0)
    for script, calls in zip(workload.scripts, served(engine, workload), strict=True):
        assert [request.output_tokens for request in calls] == [len(turn.output) for turn in script.turns]
        assert [request.text for request in calls] == ["".join(turn.output) for turn in script.turns]


def test_unique_prompts_part_within_their_first_tokens():
    workload = loaded(**UNIQUE, n_programs=80)
    opening = ExactText(count).opening
    calls = [call for program in shared_by_brute_force(workload.scripts, opening) for call in program]
    assert len(calls) == 80
    assert max(call.shared_tokens for call in calls) <= opening + 2
    prompts = [job.args["turns"][0].text for job in workload.jobs()]
    assert len(set(prompts)) == 80


def test_programs_of_one_prefix_begin_with_it():
    workload = loaded(**SMALL, prefix_cv=0)
    heads = {}
    for script in workload.scripts:
        heads.setdefault(script.plan.prefix, set()).add(script.turns[0].text[:60])
    assert len(heads) > 1
    assert all(len(texts) == 1 for texts in heads.values())
    assert len(set.union(*heads.values())) == len(heads)


def test_calls_of_a_program_follow_each_other_with_pauses():
    workload = loaded(**SMALL, agents=0, turns=6, think_s=40, seed=4)
    job = max(workload.jobs(), key=lambda job: len(job.args["turns"]))
    turns = job.args["turns"]
    backend = MockBackend()
    state = job.program.run(turns=turns, backend=backend, outputs="recorded")
    assert len(backend.log) == len(turns) > 2
    for call, turn in zip(backend.log, turns, strict=True):
        assert call.prompt.endswith(turn.text)
    for before, after in zip(backend.log, backend.log[1:], strict=False):
        assert after.prompt.startswith(before.prompt + before.text)
    assert state.text() == backend.log[-1].prompt + backend.log[-1].text
    assert backend.clock.now() >= sum(turn.pause_s for turn in turns[1:])


def test_what_is_too_long_is_left_out_and_counted():
    workload = loaded(**SMALL, max_context_tokens=120)
    assert workload.data.note.endswith("calls of more than 120 tokens are left out")
    for script in workload.scripts:
        assert 1 + sum(len(turn.text) + len(turn.output) for turn in script.turns) <= 120
    with pytest.raises(DataError, match="max_context_tokens=3 leaves no call of any program; raise it"):
        loaded(**SMALL, max_context_tokens=3)


# ---- settings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"arrivals": "pareto"}, "arrivals='pareto' is not allowed: it must be one of poisson, gamma, onoff, none"),
        ({"n_programs": 0}, "n_programs=0 is not allowed"),
        ({"rate_per_s": 0}, "rate_per_s=0 is not allowed: it must be a number, 0.001 or more"),
        ({"agents": 1.5}, "agents=1.5 is not allowed: it is a share"),
        ({"turns": 0.5}, "turns=0.5 is not allowed: it must be a number, 1 or more"),
        ({"alpha": float("nan")}, "alpha=nan is not allowed"),
        ({"seed": "x"}, "seed='x' is not allowed"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_workload("synthetic", kwargs)


def test_warming_up_warms_nothing_that_is_measured():
    workload = loaded(**SMALL)
    for job in workload.warmup():
        assert job.namespace == "warmup"
        assert not any(other.args["turns"][0].text[:4] == "Warm" for other in workload.jobs())
        assert job.program.run(**job.args, backend=MockBackend(), outputs="recorded").error() is None


@pytest.mark.parametrize("preset", ["synthetic", "synthetic_unique"])
def test_a_run_leaves_its_note(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["workload.n_programs=6", "workload.rate_per_s=50", "workload.think_s=0", "workload.message_tokens=20"]
    monkeypatch.setattr(sys, "argv", ["run.py", f"workload={preset}", "policy=lru", *small])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    GlobalHydra.instance().clear()
    assert run.main() == 0
    assert "generated, not recorded: an endless cache finds" in capsys.readouterr().out
    (summary,) = tmp_path.glob("outputs/synthetic/lru/*/summary.json")
    told = json.loads(summary.read_text())
    assert (told["programs"], told["errors"]) == (6, 0)
    assert told["hit_rate"] < 0.2 or preset == "synthetic"
