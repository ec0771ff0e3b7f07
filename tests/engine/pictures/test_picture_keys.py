"""A picture is a part of the radix key: the same one hits, another never does, whatever the cache goes through."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngInfo

from engine.engine import Engine
from engine.pictures import PLACE, Picture, keys_of, place
from engine.replay import first_difference, replay
from engine.request import PENDING, Request, RequestError, SamplingParams
from tests.engine.pictures.conftest import IMAGE_ID, N_TOKENS, draw, engine_of, file_of, words

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
QUESTION = [*words(3, 1), PLACE, *words(6, 2)]


def serve(engine: Engine, prompt: list[int], images: list[Any], params: SamplingParams = GREEDY) -> list[Request]:
    requests = engine.add(prompt, params, images=images)
    engine.run()
    engine.check()
    for request in requests:
        assert request.error is None
    return requests


def tagged(seed: int) -> bytes:
    """The same picture in another PNG file."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text("Comment", "another file")
    draw(seed).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def test_same_picture_in_another_file_hits(saved_llava: tuple[Any, Path], tmp_path: Path) -> None:
    engine = engine_of(saved_llava[1])
    [first] = serve(engine, QUESTION, [file_of(draw(0))])
    assert first.n_cached == 0
    (tmp_path / "same.png").write_bytes(file_of(draw(0)))
    for same in (file_of(draw(0), "WEBP"), tagged(0), draw(0), tmp_path / "same.png", str(tmp_path / "same.png")):
        [again] = serve(engine, QUESTION, [same])
        assert again.n_cached == first.prompt_tokens - 1
        assert again.output == first.output
    assert engine.executor.eyes.encoded == 1  # type: ignore[attr-defined]


def test_another_picture_with_the_same_words_shares_what_stands_before_it_alone(saved_llava: tuple[Any, Path]) -> None:
    engine, alone = engine_of(saved_llava[1]), engine_of(saved_llava[1], cache="none")
    for seed in range(4):
        [request] = serve(engine, QUESTION, [file_of(draw(seed))])
        assert request.n_cached == (3 if seed else 0)
        assert request.output == serve(alone, QUESTION, [file_of(draw(seed))])[0].output


def test_one_pixel_makes_another_picture(saved_llava: tuple[Any, Path]) -> None:
    engine = engine_of(saved_llava[1])
    image = draw(0, (28, 28))
    serve(engine, QUESTION, [image])
    red, green, blue = image.getpixel((14, 14))  # type: ignore[misc]
    image.putpixel((14, 14), (red ^ 1, green, blue))
    [request] = serve(engine, QUESTION, [image])
    assert request.n_cached == 3


def test_order_of_pictures_matters(saved_llava: tuple[Any, Path]) -> None:
    engine = engine_of(saved_llava[1])
    a, b = file_of(draw(0)), file_of(draw(1))
    serve(engine, [5, PLACE, PLACE, 6], [a, b])
    assert serve(engine, [5, PLACE, PLACE, 6], [b, a])[0].n_cached == 1
    assert serve(engine, [5, PLACE, PLACE, 6], [a, a])[0].n_cached == 1 + N_TOKENS


@given(st.binary(min_size=32, max_size=32), st.integers(1, 600))
@settings(max_examples=50, deadline=None)
def test_keys_of_a_picture_are_negative_and_nothing_elses(digest: bytes, n_tokens: int) -> None:
    keys = keys_of(Picture(digest, np.zeros((3, 1, 1), np.float32)), n_tokens)
    assert (keys < PLACE).all()
    assert (keys > PENDING).all()
    assert len(np.unique(keys)) == n_tokens


@given(st.lists(st.integers(-1, 5), max_size=12))
@settings(max_examples=100, deadline=None)
def test_placed_pictures_leave_the_words_as_they_are(tokens: list[int]) -> None:
    pictures = [Picture(bytes([i]) * 32, np.zeros((3, 1, 1), np.float32)) for i in range(tokens.count(PLACE))]
    key, placed = place(tokens, pictures, 3)
    assert key[key >= 0].tolist() == [t for t in tokens if t != PLACE]
    assert [one.picture for one in placed] == pictures
    for one in placed:
        assert key[one.start : one.end].tolist() == keys_of(one.picture, 3).tolist()


SMALL_POOLS = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 4, 16]),
        "pool_tokens": st.sampled_from([96, 160, 512]),
        "max_batch_tokens": st.sampled_from([5, 13, 64]),
        "max_running": st.sampled_from([1, 3]),
        "overlap": st.booleans(),
        "eviction": st.sampled_from(["lru", "fifo", "lfu"]),
        "schedule": st.sampled_from(["fcfs", "cache_aware"]),
    }
)
PARTS = st.one_of(st.sampled_from([(1, 2, 3), (1, 2), (4,)]), st.sampled_from(["sun", "sea", "owl"]))
PROMPTS = st.lists(st.tuples(st.lists(PARTS, min_size=1, max_size=4), st.integers(1, 2)), min_size=1, max_size=6)
FILES = {name: file_of(draw(i)) for i, name in enumerate(["sun", "sea", "owl"])}


@functools.cache
def _uncached(folder: Path) -> Engine:
    return engine_of(folder, cache="none")


@functools.cache
def alone(folder: Path, tokens: tuple[int, ...], images: tuple[str, ...]) -> list[int]:
    """What an engine without a cache answers."""
    return serve(_uncached(folder), list(tokens), [FILES[name] for name in images])[0].output


@given(config=SMALL_POOLS, asked=PROMPTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_about_pictures_are_those_without_a_cache(
    saved_llava: tuple[Any, Path], config: dict[str, Any], asked: list[tuple[list[Any], int]]
) -> None:
    """Chunks and evictions cut images anywhere, requests are preempted within one, samples share one."""
    folder = saved_llava[1]
    engine = engine_of(folder, **config)
    expected: list[tuple[Request, list[int]]] = []
    for parts, n in asked:
        images = tuple(part for part in parts if isinstance(part, str))
        tokens = tuple(t for part in parts for t in ((PLACE,) if isinstance(part, str) else part))
        params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True, n=n)
        given = engine.add(list(tokens), params, images=[FILES[name] for name in images])
        expected += [(request, alone(folder, tokens, images)) for request in given]
        engine.step()
        engine.check()
    while engine.has_work:
        engine.step()
        engine.check()
    for request, output in expected:
        assert request.error is None
        assert request.output == output
    memory = engine.memory
    assert memory.pool.n_free * config["page_size"] + memory.cache.cached_tokens == engine.capacity_tokens
    assert first_difference(engine.log, replay(engine.log)) is None


def test_request_preempted_within_its_answer_finds_its_picture_again(saved_llava: tuple[Any, Path]) -> None:
    folder = saved_llava[1]
    engine = engine_of(folder, pool_tokens=64, max_running=3)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    images = [FILES["sun"], FILES["sea"]]
    requests = [
        engine.add([i + 1, PLACE], params, images=[image], predicted_output=1)[0] for i, image in enumerate(images)
    ]
    engine.run()
    engine.check()
    assert engine.metrics.preemptions > 0
    for i, (request, image) in enumerate(zip(requests, images, strict=True)):
        assert request.output == serve(_uncached(folder), [i + 1, PLACE], [image], params)[0].output


def test_eviction_in_the_middle_of_a_picture_leaves_the_rest_of_it_usable(saved_llava: tuple[Any, Path]) -> None:
    folder = saved_llava[1]
    engine = engine_of(folder, pool_tokens=48)
    [first] = serve(engine, [1, PLACE, 2], [FILES["sun"]])
    serve(engine, words(30, 7), [])  # leaves room for a part of the picture
    [again] = serve(engine, [1, PLACE, 2], [FILES["sun"]])
    assert 1 < again.n_cached < 1 + N_TOKENS
    assert again.output == first.output


def test_whole_hit_runs_no_tower(saved_llava: tuple[Any, Path]) -> None:
    engine = engine_of(saved_llava[1])
    serve(engine, QUESTION, [FILES["sun"]])
    eyes: Any = engine.executor.eyes  # type: ignore[attr-defined]
    assert (eyes.encoded, eyes.found) == (1, 0)
    serve(engine, QUESTION, [FILES["sun"]])
    assert (eyes.encoded, eyes.found) == (1, 0)  # its KV is there: nobody looks
    engine.flush_cache()
    serve(engine, QUESTION, [FILES["sun"]])
    assert (eyes.encoded, eyes.found) == (1, 1)  # its KV is gone, its encoding isn't
    assert (engine.metrics.images_encoded, engine.metrics.images_found) == (1, 1)
    engine.reset_metrics()
    assert (engine.metrics.images_encoded, engine.metrics.images_found) == (0, 0)


def test_penalties_pass_over_a_pictures_positions(saved_llava: tuple[Any, Path]) -> None:
    """They have no token that could be repeated: the words alone count."""
    engine = engine_of(saved_llava[1])
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, repetition_penalty=100)
    [request] = serve(engine, QUESTION, [FILES["sun"]], params)
    spoken = [t for t in QUESTION if t != PLACE] + request.output
    assert len(set(spoken)) == len(set(QUESTION) - {PLACE}) + len(request.output)


@pytest.mark.parametrize(
    ("prompt", "images", "settings", "why"),
    [
        ([1, PLACE], [], {}, "no images came with it"),
        ([1, IMAGE_ID], [], {}, "no images came with it"),
        ([1, PLACE, PLACE], [b""], {}, "1 images for 2 places"),
        ([1, PLACE], [b"no picture"], {}, "the image is none"),
        ([1, PLACE], [file_of(draw(0))[:200]], {}, "cut off or broken"),
        ([1, PLACE], ["nowhere.png"], {}, "can't be read"),
        ([1, PLACE], [3], {}, "image int is not allowed"),
        ([1, PLACE, 2], [file_of(draw(0))], {"prompt_logprobs": 0}, "prompt_logprobs_start to 17"),
        ([1, PLACE, 2], [file_of(draw(0))], {"token_healing": True}, "token_healing"),
    ],
)
def test_what_cant_be_seen_is_refused_and_others_go_on(
    saved_llava: tuple[Any, Path], prompt: list[int], images: list[Any], settings: dict[str, Any], why: str
) -> None:
    engine = engine_of(saved_llava[1])
    [good] = engine.add(QUESTION, GREEDY, images=[FILES["sun"]])
    with pytest.raises(RequestError, match=why):
        engine.add(prompt, SamplingParams(max_tokens=2, temperature=0, **settings), images=images)
    engine.run()
    assert good.error is None
    assert len(good.output) == 5
