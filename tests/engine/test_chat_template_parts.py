"""Templates that read a message as a list of texts and images: LLaVA 1.5's, against transformers' own rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.chat_template import IMAGE, ChatTemplate, load_chat_template
from engine.pictures import PLACE
from engine.request import RequestError
from engine.tokenizer import load_tokenizer
from lang.chat_style import style_of

LLAVA = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}
{#- images first -#}
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{#- then texts -#}
{% if message['role'] != 'assistant' %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}
{%- else %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
"""Says what that of llava-hf/llava-1.5-7b-hf says."""

Pair = tuple[ChatTemplate, Any]


@pytest.fixture(scope="module")
def pair(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours and transformers' tokenizer."""
    folder = tmp_path_factory.mktemp("llava")
    fast = Fast.from_file(str(data_dir / "tokenizers" / "tinyllama_tokenizer.json"))
    fast.add_special_tokens([AddedToken("<image>", special=True)])
    slow = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    slow.chat_template = LLAVA
    slow.save_pretrained(folder)
    return load_chat_template(load_tokenizer(folder)), AutoTokenizer.from_pretrained(str(folder))


def theirs(slow: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids with PLACE for the image's."""
    ids = slow.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    place = slow.convert_tokens_to_ids("<image>")
    return [PLACE if token == place else token for token in ids]


def parts(*of: str) -> list[dict[str, str]]:
    return [{"type": "image"} if one == IMAGE else {"type": "text", "text": one} for one in of]


@pytest.mark.parametrize(
    "turns",
    [
        [("user", ("What is this?",))],
        [("user", (IMAGE, "What is this?"))],
        [("user", ("What is this?", IMAGE))],
        [("user", (IMAGE, IMAGE, "Compare them."))],
        [("system", ("Be brief.",)), ("user", (IMAGE, "And this?")), ("assistant", ("A cat.",)), ("user", ("Sure?",))],
    ],
)
def test_prompts_are_those_of_transformers(pair: Pair, turns: list[tuple[str, tuple[str, ...]]]) -> None:
    ours, slow = pair
    found = ours.encode([{"role": role, "content": "\n".join(said)} for role, said in turns])
    assert found == theirs(slow, [{"role": role, "content": parts(*said)} for role, said in turns])
    assert found.count(PLACE) == sum(said.count(IMAGE) for _, said in turns)


def test_what_a_message_says_of_images_stays_text(pair: Pair) -> None:
    ours, slow = pair
    found = ours.encode([{"role": "user", "content": f"{IMAGE}\nIs <image> a token?"}])
    assert found.count(PLACE) == 1
    assert "<image> a token" in slow.decode(found[found.index(PLACE) + 1 :])


def test_an_answer_goes_on(pair: Pair) -> None:
    ours, slow = pair
    messages = [{"role": "user", "content": "Sing."}, {"role": "assistant", "content": "La la"}]
    assert slow.decode(ours.encode(messages, continue_last=True)).endswith("USER: Sing. ASSISTANT: La la")


def test_a_language_takes_it_apart(pair: Pair) -> None:
    ours, _ = pair
    style = style_of(ours.render, "the template")
    assert style.begin["user"] == "USER: "
    assert style.begin["assistant"].strip() == "ASSISTANT:"
    assert style.begin["system"] == ""


def test_a_template_that_drops_images_is_told(pair: Pair) -> None:
    ours, _ = pair
    blind = ChatTemplate(ours._tokenizer, {"default": LLAVA.replace("'equalto', 'image'", "'equalto', 'none'")}, "x")
    with pytest.raises(RequestError, match="shows 0 of 1 images"):
        blind.encode([{"role": "user", "content": IMAGE}])


@pytest.mark.parametrize("source", ["{% for m in messages %}{{ m.content }}{% endfor %}", "nothing"])
def test_others_take_texts(pair: Pair, source: str) -> None:
    ours, _ = pair
    template = ChatTemplate(ours._tokenizer, {"default": source}, "x")
    assert template.render([{"role": "user", "content": "a"}]) in ("a", "nothing")
