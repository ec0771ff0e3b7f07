"""What a backend can't do is refused before the first call, with what to use instead."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend
from lang.capabilities import features_of
from lang.prompt import Image, Prompt, RoleMark
from lang.sampling import Sampling, overrides


class Chatty(MockBackend):
    """A chat API, say."""

    def __init__(self):
        super().__init__()
        missing = {
            sgl.Feature.COMPLETION: "put it inside user(...) and assistant(...)",
            sgl.Feature.REGEX: "use json_schema=...",
            sgl.Feature.SELECT: "use json_schema with an enum",
            sgl.Feature.ASSISTANT_PREFIX: "put the text into the user's message",
        }
        self.capabilities = sgl.Capabilities("chatty", missing)


ASK = sgl.user("q") + sgl.assistant_begin()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("q" + sgl.gen("x"), r"a call outside of any role isn't served by chatty: put it inside user\(...\)"),
        (
            ASK + sgl.gen("x", regex="a"),
            r"gen\(regex=...\) or gen\(dtype=...\) isn't served by chatty: use json",
        ),
        (ASK + sgl.gen_int("x"), "isn't served by chatty: use json_schema"),
        (ASK + sgl.select("x", ["a"]), r"select\(...\) isn't served by chatty: use json_schema with an enum"),
        (ASK + "so" + sgl.gen("x"), "a call after text of the same assistant message isn't served"),
        (ASK + sgl.gen("y") + sgl.gen("x"), "a call after text of the same assistant message isn't served"),
    ],
)
def test_refused_where_it_is_written(part, message):
    @sgl.function
    def program(s):
        s += part

    backend = Chatty()
    with pytest.raises(sgl.NotServed, match=message) as caught:
        program.run(backend=backend)
    assert any(__file__ in note for note in caught.value.__notes__)
    assert backend.log == [] or [call.name for call in backend.log] == ["y"]


def test_what_is_there_works():
    @sgl.function
    def program(s):
        s += ASK + sgl.gen("x", temperature=0, stop="\n") + sgl.assistant_end()

    assert program.run(backend=Chatty())["x"] == "ok"


def test_flushing_a_cache_that_is_not_there():
    class Bare(Chatty):
        flush_cache = sgl.Backend.flush_cache

    with pytest.raises(sgl.NotServed, match="isn't served by chatty"):
        sgl.flush_cache(Bare())


def test_every_sampling_value_that_changes_the_call_asks_for_a_feature():
    served_by_all = {"max_tokens", "temperature", "top_p", "tool_choice", "recorded"}
    values = {
        **{"min_tokens": 1, "n": 2, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.1},
        **{"frequency_penalty": 0.1, "stop": "a", "stop_token_ids": [1], "ignore_eos": True, "seed": 1},
        **{"forced_output": [1], "regex": "a", "json_schema": {}, "stop_regex": "a", "logprobs": 0},
        "token_healing": True,
        "outputs": "fixed",
        "tools": [{"name": "f", "parameters": {}}],
    }
    assert {*values, *served_by_all} == {*Sampling.__dataclass_fields__}
    asked = list(features_of(Prompt(("text",)), Sampling(**overrides(values))))
    assert len({feature for feature, _ in asked}) == 1 + len(values)


def test_what_a_prompt_asks_for():
    image = Image(b"", "image/png")
    user, answer = RoleMark("user", True), RoleMark("assistant", True)

    def asked(*pieces):
        return {feature for feature, _ in features_of(Prompt(pieces), Sampling())}

    assert asked("a") == {sgl.Feature.COMPLETION}
    assert asked(user, "a", image, RoleMark("user", False), answer) == {sgl.Feature.CHAT, sgl.Feature.IMAGES}
    assert asked(user, "a", RoleMark("user", False), answer, "b") == {sgl.Feature.CHAT, sgl.Feature.ASSISTANT_PREFIX}
