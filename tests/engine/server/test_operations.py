"""What those who run the server see: the model, the cache and the counters, as the engine has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.config import EngineConfig
from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve

POOL = 512


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    engine = EngineConfig(model="tiny", device="cpu", pool_tokens=POOL)
    with serve(ServerConfig(port=0, grace_s=0, max_n=4), engine) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url) as client:
        client.post("/flush_cache")
        yield client


def complete(client: httpx.Client, prompt: Any, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 4} | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def counters(client: httpx.Client) -> dict[str, float]:
    """Name and labels of every sample: its value."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        sample.name + "".join(f"|{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_model_is_listed_and_found_by_its_name(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["max_model_len"] == 16_384
    assert client.get("/v1/models/tiny").json() == model
    missing = client.get("/v1/models/gpt-4")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_the_tree_shows_what_was_asked(client: httpx.Client) -> None:
    shared = list(range(20, 60))
    for branch in (100, 200, 300):
        complete(client, [*shared, branch, branch + 1], max_tokens=1)
    tree = client.get("/cache", params={"order": "hits", "preview": True}).json()
    (trunk, *branches) = tree["nodes"]
    assert (trunk["start"], trunk["n_tokens"], trunk["n_children"], trunk["parent"]) == (0, 40, 3, None)
    assert trunk["hits"] == 2
    assert {node["start"] for node in branches} == {40}
    assert {node["parent"] for node in branches} == {trunk["id"]}
    assert tree["namespaces"] == {"": {"nodes": 4, "tokens": 46, "locked_tokens": 0}}
    assert tree["free_tokens"] + tree["cached_tokens"] == POOL == tree["pool_tokens"]
    assert tree["complete"]


def test_the_view_of_the_tree_is_bounded(client: httpx.Client) -> None:
    for i in range(5):
        complete(client, [50 + i, 60, 70], max_tokens=1)
    assert len(client.get("/cache", params={"limit": 2}).json()["nodes"]) == 2
    assert client.get("/cache", params={"limit": 0}).json()["nodes"] == []
    for wrong, named in (({"limit": 10**6}, "limit"), ({"order": "prettiest"}, "order")):
        refused = client.get("/cache", params=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)


def test_flushing_forgets_what_nobody_uses(client: httpx.Client) -> None:
    complete(client, list(range(20, 60)))
    assert client.get("/cache").json()["cached_tokens"] == 43
    assert client.post("/flush_cache").json() == {"flushed_tokens": 43, "cached_tokens": 0}
    assert client.get("/cache").json()["nodes"] == []
    assert complete(client, list(range(20, 60)))["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_counters_add_up(client: httpx.Client) -> None:
    before = counters(client)
    prompt = list(range(20, 60))
    complete(client, prompt, max_tokens=5)
    complete(client, prompt, max_tokens=5, n=2)
    after = counters(client)

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert gained("radixlab_prompt_tokens_total") == 120
    assert gained("radixlab_cached_prompt_tokens_total") == 39 + 39
    assert gained("radixlab_output_tokens_total") == 15
    assert gained("radixlab_samples_total|outcome=length") == 3
    assert gained("radixlab_http_requests_total|path=/v1/completions|status=200") == 2
    assert gained("radixlab_time_to_first_token_seconds_count") == 3
    assert gained("radixlab_time_per_output_token_seconds_count") == 3
    assert gained("radixlab_request_seconds_count") == 3
    for kind in ("scheduling", "retention", "admission", "eviction"):
        assert after[f"radixlab_policy_seconds_total|kind={kind}"] >= 0
    assert gained("radixlab_policy_calls_total|kind=admission") == 3
    assert gained("radixlab_policy_seconds_total|kind=scheduling") > 0
    assert (after["radixlab_running"], after["radixlab_waiting"], after["radixlab_ready"]) == (0, 0, 1)
    assert after["radixlab_pool_free_tokens"] + after["radixlab_pool_cached_tokens"] == POOL


def test_evicted_pages_tell_their_age_and_what_returns_is_counted(client: httpx.Client) -> None:
    before = counters(client)
    for first in (10, 20, 30, 10):
        complete(client, [first] * 200, max_tokens=1)
    after = counters(client)
    evicted = after["radixlab_evicted_tokens_total"] - before["radixlab_evicted_tokens_total"]
    assert evicted > 0
    idle = "radixlab_evicted_page_idle_seconds"
    assert after[f"{idle}_count"] - before[f"{idle}_count"] == evicted
    assert after[f"{idle}_bucket|le=+Inf"] == after[f"{idle}_count"]
    assert after["radixlab_refetched_tokens_total"] > before["radixlab_refetched_tokens_total"]


def test_a_grammars_work_is_counted(client: httpx.Client) -> None:
    before = counters(client)
    schema = {"type": "object", "properties": {"name": {"enum": ["Ada", "Bob"]}}, "required": ["name"]}
    answer = client.post(
        "/v1/completions",
        json={
            "model": "tiny",
            "prompt": "Who?",
            "max_tokens": 40,
            "json_schema": schema,
        },
    )
    assert answer.status_code == 200, answer.text
    after = counters(client)
    for name in ("forced_tokens", "grammar_requests", "grammar_masks", "grammar_passes_saved"):
        assert after[f"radixlab_{name}_total"] > before[f"radixlab_{name}_total"], name
    assert after["radixlab_grammar_compile_seconds_total"] > before["radixlab_grammar_compile_seconds_total"]


def test_a_refusal_is_counted_by_its_status(client: httpx.Client) -> None:
    before = counters(client).get("radixlab_refused_total|status=400", 0)
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": []}).status_code == 400
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 10_000})
    assert answer.status_code == 400
    assert counters(client)["radixlab_refused_total|status=400"] > before


def test_a_server_keeps_no_history(server: LiveServer, client: httpx.Client) -> None:
    complete(client, "Once upon a time")
    engine = server.state.service.engine
    assert len(engine.log) == 0
    assert engine.metrics.steps == []
