"""Programs that show pictures to the engine's model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

import lang
from engine.config import EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from engine.replay import first_difference, replay
from engine.request import SamplingParams
from lang.backends.base import Tags
from lang.backends.engine import EngineBackend
from lang.hints import Pin
from lang.prompt import Prompt
from tests.engine.pictures.conftest import draw, file_of

SUN, SEA = file_of(draw(0)), file_of(draw(1))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(EngineConfig(model="llava-tiny", device="cpu", pool_tokens=4096))


@pytest.fixture
def backend(engine: Engine) -> Iterator[EngineBackend]:
    engine.flush_cache()
    engine.reset_metrics()
    yield EngineBackend(engine)
    assert not engine.has_work
    engine.check()


@lang.function
def look(s: Any, picture: bytes, question: str, n: int = 1) -> None:
    s += "Look: " + lang.image(picture) + question + lang.gen("seen", max_tokens=4, temperature=0, ignore_eos=True, n=n)


@lang.function
def compare(s: Any, picture: bytes) -> None:
    s += "Look: " + lang.image(picture)
    s += lang.select("kind", [" a drawing", " a photo", " nothing"])


@lang.function
def views(s: Any, picture: bytes) -> None:
    s += "Look: " + lang.image(picture)
    forks = s.fork(3)
    forks += lambda i: f" View {i}:" + lang.gen("view", max_tokens=3, temperature=0, ignore_eos=True)
    forks.join()
    s += "".join(s["view"]) + lang.gen("end", max_tokens=2, temperature=0, ignore_eos=True)


@lang.function
def ask(s: Any, picture: bytes) -> None:
    s += lang.user(lang.image(picture) + "\nWhich colour?")
    s += lang.assistant(lang.gen("colour", max_tokens=4, temperature=0, ignore_eos=True))


def test_a_program_sees_what_the_engine_sees(engine: Engine, backend: EngineBackend) -> None:
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    [request] = engine.add("Look: <image> Where?", params, images=[SUN])
    engine.run()
    state = look.run(SUN, " Where?", backend=backend)
    assert state["seen"] == request.text
    assert state.get_meta_info("seen")["cached_tokens"] == request.prompt_tokens - 1
    assert state.text().startswith("Look: <image> Where?")


def test_samples_share_their_picture(engine: Engine, backend: EngineBackend) -> None:
    state = look.run(SUN, " Where?", n=3, backend=backend)
    assert len(set(state["seen"])) == 1
    assert engine.metrics.images_encoded + engine.metrics.images_found == 1


def test_a_batch_computes_a_picture_that_its_programs_share_once(engine: Engine, backend: EngineBackend) -> None:
    states = look.run_batch([(SUN, f" Question {i}?") for i in range(5)], backend=backend)
    assert [state.error() for state in states] == [None] * 5
    assert engine.metrics.images_encoded + engine.metrics.images_found == 1


def test_a_choice_behind_a_picture_is_the_likeliest(engine: Engine, backend: EngineBackend) -> None:
    """Scored by hand: each choice's mean log-probability behind prompt and picture."""
    state = compare.run(SUN, backend=backend)
    before = engine.tokenizer.encode("Look: ")  # type: ignore[union-attr]
    means = {}
    for choice in (" a drawing", " a photo", " nothing"):
        tokens = engine.tokenizer.encode(choice, add_special_tokens=False)  # type: ignore[union-attr]
        start = len(before) + engine.image_tokens
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=start)
        [request] = engine.add([*before, -1, *tokens], params, images=[SUN])
        engine.run()
        means[choice] = sum(entry.logprob for entry in request.prompt_logprobs) / len(tokens)
    assert state["kind"] == max(means, key=means.__getitem__)


def test_forks_share_the_picture_before_them(engine: Engine, backend: EngineBackend) -> None:
    state = views.run(SUN, backend=backend)
    assert len(state["view"]) == 3
    assert state.error() is None
    assert engine.metrics.images_encoded + engine.metrics.images_found == 1


def test_a_picture_stands_in_a_users_message(engine: Engine, backend: EngineBackend) -> None:
    one, other = ask.run_batch([(SUN,), (SEA,)], backend=backend)
    assert one.error() is None
    assert other.error() is None
    assert one.get_meta_info("colour")["prompt_tokens"] > engine.image_tokens


def test_a_broken_picture_fails_its_program_alone(backend: EngineBackend) -> None:
    good, bad = look.run_batch([(SUN, "?"), (SUN[:100], "?")], backend=backend)
    assert good.error() is None
    assert "cut off or broken" in str(bad.error())


def test_a_users_word_for_an_image_is_text(engine: Engine, backend: EngineBackend) -> None:
    state = look.run(SUN, " Is <image> a word?", backend=backend)
    assert state.error() is None
    words = len(engine.tokenizer.encode("Look: "))  # type: ignore[union-attr]
    said = len(engine.tokenizer.encode(" Is <image> a word?", add_special_tokens=False))  # type: ignore[union-attr]
    assert state.get_meta_info("seen")["prompt_tokens"] == words + engine.image_tokens + said


def test_a_hint_about_a_prefix_with_a_picture_names_its_keys(engine: Engine, backend: EngineBackend) -> None:
    prefix = Prompt(("Look: ", lang.prompt.Image(SUN, "image/png"), " Where?"))
    backend.hint(Pin(prefix, engine.clock.now() + 1), Tags())
    hinted = list(engine.log.inputs())[-1]
    [request] = engine.add("Look: <image> Where?", SamplingParams(max_tokens=0), images=[SUN])
    engine.run()
    assert hinted.kind == "hint"
    assert list(hinted.tokens) == request.key[:-1].tolist()


def test_a_run_with_pictures_is_replayed_without_them(engine: Engine, backend: EngineBackend) -> None:
    views.run(SEA, backend=backend)
    assert first_difference(engine.log, replay(engine.log)) is None


def test_a_model_without_eyes_refuses_before_anything_runs() -> None:
    backend = EngineBackend(make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=512)))
    with pytest.raises(lang.NotServed, match="the model takes none"):
        look.run(SUN, "?", backend=backend)


def test_pictures_of_any_size_and_mode_are_seen(backend: EngineBackend) -> None:
    for mode, size in (("L", (3, 90)), ("RGBA", (90, 3)), ("P", (1, 1))):
        out = io.BytesIO()
        Image.new(mode, size).save(out, "PNG")
        assert look.run(out.getvalue(), "?", backend=backend).error() is None
