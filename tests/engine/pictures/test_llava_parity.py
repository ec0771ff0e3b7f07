"""LLaVA against transformers in float64: encodings, logits wherever images stand, greedy tokens through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.models.load import load_model, read_config
from engine.models.preprocess import picture_reader
from engine.pictures import PLACE
from engine.request import SamplingParams
from tests.engine.pictures.conftest import IMAGE_ID, N_TOKENS, draw, engine_of, file_of, hf_llava, words


def tokens_and_pixels(prompt: list[int], files: list[bytes], folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers takes: placeholders repeated, pictures made ready."""
    reader = picture_reader(read_config(folder), folder)
    pixels = torch.from_numpy(np.stack([reader.read(file).pixels for file in files])).double()
    ids = [t for token in prompt for t in ([IMAGE_ID] * N_TOKENS if token == PLACE else [token])]
    return torch.tensor([ids]), pixels


PROMPTS = {
    "in the middle": [*words(5, 1), PLACE, *words(7, 2)],
    "at the beginning": [PLACE, *words(9, 3)],
    "two, one right behind the other": [*words(2, 4), PLACE, PLACE, *words(4, 5)],
    "at the end": [*words(6, 6), PLACE],
    "three, one of them twice": [PLACE, *words(3, 7), PLACE, *words(3, 8), PLACE, *words(2, 9)],
}


def files_for(prompt: list[int]) -> list[bytes]:
    return [file_of(draw(i % 2)) for i in range(prompt.count(PLACE))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_feature_layer": -1},
        {"vision_feature_select_strategy": "full"},
        {"multimodal_projector_bias": False},
    ],
)
def test_encodings_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = hf_llava(**changes)
    theirs.save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), "float64")
    assert ours.vision is not None
    pixels = torch.randn(2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = theirs.get_image_features(
            pixels,
            vision_feature_layer=theirs.config.vision_feature_layer,
            vision_feature_select_strategy=theirs.config.vision_feature_select_strategy,
        )
    expected = torch.stack(list(getattr(found, "pooler_output", found)))
    assert ours.config.vision is not None
    assert expected.shape[1] == ours.config.vision.n_tokens
    assert (ours.vision(pixels) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_batch_tokens": 7, "max_running": 4}, {"page_size": 4}, {"cache": "none"}],
    ids=["plain", "cut", "pages", "off"],
)
def test_greedy_tokens_are_those_of_transformers(
    saved_llava: tuple[Any, Path], name: str, settings: dict[str, Any]
) -> None:
    """Chunks of seven tokens cut every image in three."""
    theirs, folder = saved_llava
    prompt, engine = PROMPTS[name], engine_of(folder, **settings)
    files = files_for(prompt)
    ids, pixels = tokens_and_pixels(prompt, files, folder)
    with torch.no_grad():
        expected = theirs.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    for _ in range(2):  # the second time from the cache
        [request] = engine.add(prompt, params, images=files)
        while engine.has_work:
            engine.step()
        assert request.output == expected[0, ids.shape[1] :].tolist()
    assert request.prompt_tokens == ids.shape[1]
    assert request.n_cached == (0 if settings.get("cache") == "none" else request.n_cached)
    if settings.get("cache") != "none":
        assert request.n_cached >= ids.shape[1] - 1 - settings.get("page_size", 1)


def test_log_probabilities_behind_an_image_are_those_of_transformers(saved_llava: tuple[Any, Path]) -> None:
    theirs, folder = saved_llava
    prompt = PROMPTS["in the middle"]
    files = files_for(prompt)
    ids, pixels = tokens_and_pixels(prompt, files, folder)
    with torch.no_grad():
        logits = theirs(input_ids=ids, pixel_values=pixels).logits[0].log_softmax(-1)
    start = 5 + N_TOKENS
    expected = [logits[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
    engine = engine_of(folder)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=start)
    [request] = engine.add(prompt, params, images=files)
    while engine.has_work:
        engine.step()
    found = [entry.logprob for entry in request.prompt_logprobs]
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-6
