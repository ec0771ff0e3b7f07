"""Replayed traffic: exact sharing, times, windows, every source, and data that is broken."""

from __future__ import annotations

import gzip
import json
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

import run
from engine.config import EngineConfig
from engine.make import make_engine
from engine.tokenizer import builtin_tokenizer, load_tokenizer
from experiments.infinite_cache import infinite_hits
from lang import Runner
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from workloads.data import DataError
from workloads.exact_text import ExactText, TextError
from workloads.registry import load_workload
from workloads.trace import Trace
from workloads.trace.blocks import BlockRequest, BlockText, read_blocks
from workloads.trace.sample import sample_mooncake


@pytest.fixture(autouse=True)
def nobody_says_where(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


@pytest.fixture(scope="module")
def engine():
    return make_engine(EngineConfig(model="tiny", pool_tokens=120_000))


def count(text):
    return len(builtin_tokenizer().encode(text))


def loaded(**kwargs):
    workload = Trace(**kwargs)
    workload.count_tokens = count
    workload.choose_outputs(workload.asked_outputs, random_weights=True)
    workload.load()
    return workload


def served_one_at_a_time(engine, workload):
    """Requests of all jobs, each job after the other."""
    engine.flush_cache()
    requests, runner = [], Runner(EngineBackend(engine))
    for job in workload.jobs():
        sampling = {} if job.outputs == "free" else {"outputs": job.outputs}
        played = runner.start(job.program, job.args, name=job.name, sampling=sampling)
        while runner.active:
            runner.step()
        assert played.status == "done", played.error
        requests += [request for call in played.calls for request in call.requests]
    return requests


def row(ms, ids, length, output=32):
    return {"timestamp": ms, "input_length": length, "output_length": output, "hash_ids": ids}


def write(folder, rows, name="conversation_trace.jsonl", pack=lambda content: content):
    content = "".join(json.dumps(one) + "\n" for one in rows).encode()
    (folder / name).write_bytes(pack(content))
    return str(folder / name)


ROWS = [
    row(0, [10, 11, 12], 512 * 2 + 100, 64),
    row(500, [10, 13], 512 + 512, 0),
    row(1500, [10, 11, 14], 512 * 3, 512),
    row(4000, [10, 11, 12], 512 * 2 + 100, 64),
]


# ---- sharing


def brute_force(rows, block_tokens, n_words, digits, opening):
    """Shared prompt tokens by comparing the hash ids of every pair of rows, written apart from the workload's code."""
    order: dict[int, int] = {}
    for one in rows:
        for block in one["hash_ids"]:
            order.setdefault(block, len(order))

    def length(one):
        whole, rest = divmod(one["input_length"] - 1, 512)
        return whole * block_tokens + -(-(rest + 1) * block_tokens // 512)

    def code(block):
        return [order[block] // n_words**place % n_words for place in range(digits)]

    def common(one, other):
        tokens = 0
        for i, (a, b) in enumerate(zip(one["hash_ids"], other["hash_ids"], strict=False)):
            if a == b:
                tokens += block_tokens
                continue
            alike = 0
            while alike < digits and code(a)[alike] == code(b)[alike]:
                alike += 1
            tokens += alike + (opening if i == 0 else 0)
            break
        return min(tokens, length(one) - 1, length(other))

    return [max((common(one, other) for other in rows[:i]), default=0) for i, one in enumerate(rows)]


def check_sharing(engine, rows, path, n, block_tokens=32):
    """Hits of an endless pool, one request at a time, are what the ids alone say."""
    workload = loaded(source=path, limit=n, block_tokens=block_tokens, max_output_tokens=3, max_context_tokens=None)
    text = ExactText(count)
    found = served_one_at_a_time(engine, workload)
    assert len(found) == n
    digits = text.digits(len({block for one in rows for block in one["hash_ids"]}))
    expected = brute_force(rows, block_tokens, len(text.words), digits, text.opening)[:n]
    assert [request.n_cached for request in found] == expected
    assert infinite_hits(found) == expected
    assert sum(expected) > 0


def test_an_endless_cache_finds_what_the_block_ids_share(engine, tmp_path):
    rows = [json.loads(line) for line in sample_mooncake(20).splitlines()]
    check_sharing(engine, rows, write(tmp_path, rows, "own.jsonl"), 30)


@pytest.mark.parametrize("block_tokens", [8, 33])
def test_sharing_is_exact_for_other_block_sizes_too(engine, tmp_path, block_tokens):
    check_sharing(engine, ROWS, write(tmp_path, ROWS, "own.jsonl"), 4, block_tokens)


def test_real_conversations_share_what_their_block_ids_share(engine, data_dir):
    path = data_dir / "trace_mooncake" / "conversation_trace.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    n = 60
    workload = loaded(source=str(path), limit=n, max_output_tokens=1, block_tokens=16, max_context_tokens=None)
    text = ExactText(count)
    found = served_one_at_a_time(engine, workload)
    requests = read_blocks("t", gzip.decompress(path.read_bytes()), 512)
    n_blocks = 1 + max(max(request.blocks) for request in requests)
    writer = BlockText(text, n_blocks, 16, 512)
    by_pairs = brute_force(rows[:n], 16, len(text.words), writer.digits, text.opening)
    assert [request.n_cached for request in found] == by_pairs == writer.shared(requests[:n])
    assert sum(by_pairs) > 16 * 20


def test_the_note_tells_how_much_is_shared(engine, tmp_path):
    workload = loaded(source=write(tmp_path, ROWS, "own.jsonl"))
    requests = served_one_at_a_time(engine, workload)
    share = sum(r.n_cached for r in requests) / sum(r.prompt_tokens for r in requests)
    assert f"lengths likewise; {share:.1%} of the prompt tokens are shared" in workload.data.note


# ---- texts of an exact length


def tokenizers(data_dir):
    yield count
    tinyllama = load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")
    yield lambda text: len(tinyllama.encode(text))
    yield Trace.count_tokens  # bytes in fours, where a system has no tokenizer


def test_prompts_have_exactly_the_tokens_meant_by_any_tokenizer(data_dir):
    for count_tokens in tokenizers(data_dir):
        text = ExactText(count_tokens)
        writer = BlockText(text, 1000, 32, 512)
        request = BlockRequest("here", 0.0, 512 * 3 + 100, 5, (0, 1, 17, 18))
        assert count_tokens(writer.prompt(request)) == writer.tokens(request) == 32 * 3 + 7
        shorter = request._replace(blocks=(0, 1), input_tokens=512 * 2)
        assert writer.prompt(request).startswith(writer.prompt(shorter))


def test_a_blocks_text_depends_on_its_number_alone_and_numbers_differ_within_their_digits():
    text = ExactText(count)
    base = len(text.words)
    assert text.digits(base) == 1
    assert text.digits(base + 1) == 2
    codes = {tuple(text.numbered(number, 2, 2)) for number in range(base * 2)}
    assert len(codes) == base * 2
    assert text.numbered(5, 9, 2) == text.numbered(5, 12, 2)[:9]


def test_a_tokenizer_that_cannot_be_counted_on_is_refused():
    with pytest.raises(TextError, match=r"only 0 of the words tried are one token each .* take another"):
        ExactText(lambda _: 7)
    text = ExactText(count)
    text.count_tokens = lambda _: 3
    with pytest.raises(TextError, match=r"there: 5 words make 3 tokens where 6 were meant"):
        text.joined(text.words[:5], "there")


# ---- times, windows, lengths


def test_requests_come_at_their_times_scaled(tmp_path):
    path = write(tmp_path, ROWS, "own.jsonl")
    at = lambda **kwargs: [job.at for job in loaded(source=path, **kwargs).jobs()]  # noqa: E731
    assert at(speed=1) == [0, 0.5, 1.5, 4]
    assert at(speed=2) == [0, 0.25, 0.75, 2]
    assert at(speed=1, start_s=0.5, duration_s=3.5) == [0, 1]
    assert at(speed=1, limit=2) == [0, 0.5]
    with pytest.raises(DataError, match=r"no request of the trace comes within start_s=9, duration_s=None; it lasts 4"):
        at(start_s=9)


def test_lengths_are_scaled_with_the_blocks(tmp_path):
    path = write(tmp_path, ROWS, "own.jsonl")
    for block_tokens in (32, 64):
        jobs = loaded(source=path, block_tokens=block_tokens).jobs()
        scale = block_tokens / 512
        assert [count(job.args["prompt"]) for job in jobs] == [
            2 * block_tokens + -(-100 * block_tokens // 512),
            2 * block_tokens,
            3 * block_tokens,
            2 * block_tokens + -(-100 * block_tokens // 512),
        ]
        assert [job.args["max_tokens"] for job in jobs] == [64 * scale, 1, 512 * scale, 64 * scale]
    assert {job.args["max_tokens"] for job in loaded(source=path, max_output_tokens=2).jobs()} == {1, 2}


def test_outputs_are_as_long_as_recorded(engine, tmp_path):
    path = write(tmp_path, ROWS, "own.jsonl")
    assert [r.output_tokens for r in served_one_at_a_time(engine, loaded(source=path))] == [4, 1, 32, 4]
    trained = Trace(source=path)
    trained.choose_outputs("auto", random_weights=False)
    assert trained.outputs == "free"
    with pytest.raises(ValueError, match=r"outputs='recorded' isn't served by .*; allowed: auto, fixed, free"):
        trained.choose_outputs("recorded", random_weights=True)


def test_what_is_too_long_is_left_out_and_counted(tmp_path):
    path = write(tmp_path, ROWS, "own.jsonl")
    workload = loaded(source=path, max_context_tokens=90)
    assert len(workload.jobs()) == 3
    assert workload.data.note.endswith("1 requests of more than 90 tokens are left out")
    with pytest.raises(DataError, match="max_context_tokens=5 leaves no request of 4; raise it"):
        loaded(source=path, max_context_tokens=5)


# ---- data


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress])
def test_the_published_file_is_found_packed_or_not(tmp_path, pack):
    (tmp_path / "trace_mooncake").mkdir()
    name = "conversation_trace.jsonl" + (".gz" if pack is gzip.compress else "")
    write(tmp_path / "trace_mooncake", ROWS, name, pack)
    for folder in (tmp_path, tmp_path / "trace_mooncake"):
        workload = loaded(data_dir=str(folder))
        assert workload.data.origin == "files"
        assert [job.name for job in workload.jobs()] == [f"trace/{i}" for i in range(4)]
    with pytest.raises(DataError, match=r"no miniswe\.jsonl or miniswe\.jsonl\.gz in"):
        loaded(data_dir=str(tmp_path), source="agent")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"timestamp": 0}], r"own.jsonl, line 1: no field 'input_length'"),
        ([*ROWS, row(1, [10], 513)], r"line 5: 1 hash_ids for input_length=513, .* would be 2; set workload.trace_bl"),
        ([*ROWS, row(1, [11], 5)], r"line 5: block 11 stands after block None here and after 10 elsewhere"),
        ([row(0, ["a"], 5)], r"line 1: hash_ids must be whole numbers"),
        ([row(-1, [1], 5)], r"line 1: a timestamp \(ms\) of 0 or more"),
        ([], r"own.jsonl: no requests in it"),
    ],
)
def test_a_broken_line_is_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        loaded(source=write(tmp_path, rows, "own.jsonl"))


def test_a_line_that_is_no_json_and_a_file_that_is_not_there_are_named(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"timestamp": 0\n')
    with pytest.raises(DataError, match=r"own.jsonl, line 1: not JSON"):
        loaded(source=str(tmp_path / "own.jsonl"))
    with pytest.raises(DataError, match=r"source=moncake: there is no such file; give mooncake, agent, azure or"):
        loaded(source="moncake")


AGENT = [
    {"timestamp": 5_000_000, "input": "Look.", "output": "I look.", "session_id": "a"},
    {"timestamp": 6_000_000, "input": "Ask.", "output": "", "session_id": "b"},
    {"timestamp": 8_000_000, "input": "Look.\nSeen: a cat.", "output": "It is a cat.", "session_id": "a"},
]


def test_agents_say_what_was_recorded(engine, tmp_path):
    write(tmp_path, AGENT, "miniswe.jsonl")
    workload = loaded(source="agent", data_dir=str(tmp_path), speed=1)
    jobs = workload.jobs()
    assert [job.at for job in jobs] == [0, 1, 3]
    assert [job.conversation for job in jobs] == ["a", "b", "a"]
    assert {job.outputs for job in jobs} == {"recorded"}
    assert workload.data.note == "1 outputs that the trace leaves empty (calls of tools) are '(a tool is called)'"
    requests = served_one_at_a_time(engine, workload)
    assert [request.text for request in requests] == ["I look.", "(a tool is called)", "It is a cat."]
    assert requests[2].n_cached >= count("Look.") - 1


def test_a_session_in_a_closed_loop_sends_a_call_when_the_one_before_has_its_answer(engine, tmp_path):
    write(tmp_path, AGENT, "miniswe.jsonl")
    workload = loaded(source="agent", data_dir=str(tmp_path), pace="sessions", speed=1, pause_s=3)
    assert [(job.name, job.at) for job in workload.jobs()] == [("trace/a", 0), ("trace/b", 1)]
    backend = MockBackend(steps_per_call=5)
    job = workload.jobs()[0]
    state = job.program.run(**job.args, backend=backend, outputs="recorded")
    assert (state["answer0"], state["answer1"]) == ("I look.", "It is a cat.")
    assert [call.prompt for call in backend.log] == ["Look.", "Look.\nSeen: a cat."], "what was sent, no more"
    assert backend.clock.now() >= 5 + 3 + 5
    quick = loaded(source="agent", data_dir=str(tmp_path), pace="sessions", pause_s=0)
    assert [r.text for r in served_one_at_a_time(engine, quick)] == ["I look.", "It is a cat.", "(a tool is called)"]


def test_a_session_ends_with_the_first_call_that_is_too_long(tmp_path):
    long = {"timestamp": 7_000_000, "input": "x" * 400, "output": "o", "session_id": "a"}
    write(tmp_path, [*AGENT, long], "miniswe.jsonl")
    workload = loaded(source="agent", data_dir=str(tmp_path), max_context_tokens=100)
    assert [job.args["prompt"] for job in workload.jobs()] == ["Look.", "Ask."]
    assert "2 requests of more than 100 tokens are left out" in workload.data.note


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,1600,160\r\n"
    "2023-11-16 18:17:05.4799600,320,8\r\n"
)


def test_azures_lengths_become_unique_prompts(engine, tmp_path):
    (tmp_path / "AzureLLMInferenceTrace_code.csv").write_text(AZURE, newline="")
    workload = loaded(source="azure", part="code", data_dir=str(tmp_path), length_scale=0.1, speed=1)
    assert [job.at for job in workload.jobs()] == [0, 1.5]
    requests = served_one_at_a_time(engine, workload)
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [(160, 16), (32, 1)]
    assert [r.n_cached for r in requests] == [0, 1], "what the tokenizer puts before every text"
    assert "prompts share their first words at most" in workload.data.note


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("yesterday,1,2", r"code.csv, line 2: Invalid isoformat string"),
        ("2023-11-16 18:17:03,1,x", r"line 2: invalid literal"),
        ("2023-11-16 18:17:03,-1,2", r"line 2: lengths are 0 tokens or more"),
        ("2023-11-16 18:17:03,1", r"line 2: 2 columns, 3 are needed"),
    ],
)
def test_a_broken_line_of_azures_is_named(tmp_path, line, message):
    (tmp_path / "AzureLLMInferenceTrace_code.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{line}\n")
    with pytest.raises(DataError, match=message):
        loaded(source="azure", part="code", data_dir=str(tmp_path))


def test_a_csv_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "AzureLLMInferenceTrace_conv.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(DataError, match="line 1: columns TIMESTAMP, ContextTokens, GeneratedTokens are needed"):
        loaded(source="azure", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "title"),
    [
        ({}, "Mooncake's trace"),
        ({"source": "agent"}, "LMCache's agent traces"),
        ({"source": "azure", "part": "code"}, "Azure's traces"),
    ],
)
def test_without_data_a_sample_is_made_and_announced(kwargs, title):
    workload = loaded(**kwargs)
    assert workload.data.origin == "sample"
    assert f"not {title}" in workload.data.note
    names = [job.name for job in workload.jobs()]
    assert len(set(names)) == len(names) > 20
    prompts = [job.args["prompt"] for job in workload.jobs()]
    assert prompts == [job.args["prompt"] for job in loaded(**kwargs).jobs()]


def test_real_data_of_every_source_loads(data_dir):
    for kwargs in ({"source": "agent", "part": "taubench"}, {"source": "azure", "part": "code"}, {}):
        workload = loaded(data_dir=str(data_dir), limit=60, **kwargs)
        assert workload.data.origin == "files"
        assert len(workload.jobs()) == 60


# ---- settings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"speed": 0}, "speed=0 is not allowed: it must be a number above 0"),
        ({"start_s": -1}, "start_s=-1 is not allowed: it must be a number 0 or more"),
        ({"part": "conv"}, "part='conv' is not allowed with source=mooncake"),
        ({"source": "azure", "part": "x"}, "part='x' is not allowed: it must be one of conv, code"),
        ({"pace": "sessions"}, "pace=sessions needs source=agent"),
        ({"pace": "fast"}, "pace='fast' is not allowed"),
        ({"block_tokens": 0}, "block_tokens=0 is not allowed"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_workload("trace", kwargs)


def test_blocks_too_short_to_be_told_apart_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"block_tokens=1 is too short to tell 5 blocks apart .* it must be 2 or more"):
        loaded(source=write(tmp_path, ROWS, "own.jsonl"), block_tokens=1)


def test_warming_up_warms_nothing_that_is_measured():
    workload = loaded()
    measured = [job.args["prompt"] for job in workload.jobs()]
    for job in workload.warmup():
        assert job.namespace == "warmup"
        assert not any(prompt[:4] == job.args["prompt"][:4] for prompt in measured)
        state = job.program.run(**job.args, backend=MockBackend(), outputs=workload.outputs)
        assert state.error() is None


def test_a_run_of_the_sample_leaves_its_note(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["workload.limit=12", "workload.speed=50", "workload.max_output_tokens=4"]
    monkeypatch.setattr(sys, "argv", ["run.py", "workload=trace", "policy=lru", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    GlobalHydra.instance().clear()
    assert run.main() == 0
    assert "blocks of 32 tokens instead of 512" in capsys.readouterr().out
    (summary,) = tmp_path.glob("outputs/trace/lru/*/summary.json")
    told = json.loads(summary.read_text())
    assert (told["programs"], told["errors"]) == (12, 0)
