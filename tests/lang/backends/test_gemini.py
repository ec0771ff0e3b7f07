"""Gemini's protocol through Google's own client, on a server that says what a test tells it to."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

import lang as sgl
from lang.backends.api import AnswerError, ApiBackend
from lang.backends.base import Call, TokenLogprob
from lang.backends.gemini import GeminiBackend
from lang.backends.gemini_answer import Samples
from lang.capabilities import Feature, NotServed
from lang.choices import unconditional_likelihood_normalized
from lang.tools import ToolCall
from tests.lang.backends.conftest import HELLO, Reply, ScriptedServer, chat_of, gen, needs_gemini, select, text_of
from tests.lang.backends.gemini_answers import gemini_answer, gemini_candidate, gemini_chunk, gemini_event
from tests.lang.backends.test_openai_chat import CITY, weather
from tests.lang.backends.test_requests import PICTURE, asked_about

pytestmark = needs_gemini
Says = Callable[..., ScriptedServer]
WHOLE = gemini_answer(gemini_candidate("Lima", finish="STOP"))
SETTINGS = {"maxOutputTokens": 12}


def old(url: str, **options: Any) -> GeminiBackend:
    """A model that takes sampling parameters. Whole answers."""
    return GeminiBackend("gemini-2.5-flash", base_url=url, api_key="k", **{"stream": False, **options})


def new(url: str, **options: Any) -> GeminiBackend:
    return GeminiBackend("gemini-3.8-flash", base_url=url, api_key="k", **{"stream": False, **options})


def asked(
    says: Says, ask: Callable[[ApiBackend], Call], make: Callable[[str], GeminiBackend] = new, answer: Any = WHOLE
) -> dict[str, Any]:
    """The body that was sent."""
    server = says(Reply(body=answer))
    with make(server.url) as backend:
        text_of(ask(backend))
    (body,) = server.bodies
    return body


def told(says: Says, answer: Any, **sampling: Any) -> Call:
    """What became of the answer: whole, or a stream's events."""
    with old(says(Reply(body=answer)).url, stream=isinstance(answer, list)) as backend:
        return gen(backend, **sampling)


class TestRequests:
    def test_messages_are_contents_and_the_systems_first_ones_the_instruction(self, says: Says) -> None:
        said = [
            ("system", "Be brief."),
            ("system", "Be kind."),
            ("user", "Hello"),
            ("assistant", "Hi"),
            ("user", "Go on"),
        ]
        assert asked(says, lambda backend: gen(backend, chat_of(*said))) == {
            "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Hello"}]},
                {"role": "model", "parts": [{"text": "Hi"}]},
                {"role": "user", "parts": [{"text": "Go on"}]},
            ],
            "generationConfig": SETTINGS,
        }

    @pytest.mark.parametrize("streams", [True, False])
    def test_the_model_and_the_way_of_answering_stand_in_the_path(self, says: Says, streams: bool) -> None:
        server = says(Reply(body=[gemini_event(WHOLE)] if streams else WHOLE))
        with new(server.url, stream=streams) as backend:
            text_of(gen(backend))
        (path,) = server.paths
        way = "streamGenerateContent?alt=sse" if streams else "generateContent"
        assert path.endswith(f"/models/gemini-3.8-flash:{way}")
        assert server.headers[0]["x-goog-api-key"] == "k"

    def test_a_system_message_among_the_others_is_refused(self, says: Says) -> None:
        server = says(Reply(500))
        prompt = chat_of(("user", "Hello"), ("system", "Be quick."))
        with new(server.url) as backend, pytest.raises(NotServed, match="put it before them"):
            gen(backend, prompt)
        assert server.bodies == []

    def test_older_models_are_told_how_to_sample(self, says: Says) -> None:
        chosen = {
            "top_k": 5,
            "top_p": 0.9,
            "temperature": 0,
            "seed": 3,
            "stop": ["\n", "END"],
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
        }
        assert asked(says, lambda backend: gen(backend, **chosen), old)["generationConfig"] == {
            **SETTINGS,
            "temperature": 0,
            "topP": 0.9,
            "topK": 5,
            "seed": 3,
            "stopSequences": ["\n", "END"],
            "presencePenalty": 0.5,
            "frequencyPenalty": -0.5,
        }

    def test_older_models_are_told_the_defaults_too(self, says: Says) -> None:
        """They have others of their own."""
        body = asked(says, gen, old)
        assert body["generationConfig"] == {**SETTINGS, "temperature": 1, "topP": 1}

    @pytest.mark.parametrize("chosen", [{"temperature": 0}, {"top_p": 0.5}, {"top_k": 3}, {"n": 2}], ids=str)
    def test_what_newer_models_ignore_or_refuse_is_refused(self, says: Says, chosen: dict[str, float]) -> None:
        server = says(Reply(body=WHOLE))
        with new(server.url) as backend, pytest.raises(NotServed, match=next(iter(chosen))):
            gen(backend, **chosen)
        assert server.bodies == []
        with new(server.url, sampling=True) as backend:
            gen(backend, **chosen)
        assert len(server.bodies) == 1

    @pytest.mark.parametrize(
        ("model", "takes"),
        [
            ("gemini-2.5-pro", True),
            ("models/gemini-2.5-pro", True),
            ("gemma-4-27b-it", True),
            ("gemini-3-flash-preview", False),
            ("publishers/google/models/gemini-3.8-flash", False),
            ("gemini-flash-latest", False),
        ],
    )
    def test_what_a_model_takes_follows_from_its_name(self, model: str, takes: bool) -> None:
        with GeminiBackend(model, api_key="k") as backend:
            assert (Feature.TOP_K not in backend.capabilities.missing) == takes

    def test_images_are_inline(self, says: Says) -> None:
        body = asked(says, lambda backend: gen(backend, asked_about("What is on ", PICTURE, "?")))
        (content,) = body["contents"]
        before, image, after = content["parts"]
        assert (before, after) == ({"text": "What is on "}, {"text": "?"})
        assert image["inlineData"]["mime_type"] == "image/png"  # as the client writes it; the API takes both
        assert base64.urlsafe_b64decode(image["inlineData"]["data"]) == PICTURE.data

    def test_a_schema_is_sent_as_it_is(self, says: Says) -> None:
        config = asked(says, lambda backend: gen(backend, json_schema=CITY))["generationConfig"]
        assert config == {**SETTINGS, "responseMimeType": "application/json", "responseJsonSchema": CITY}

    @pytest.mark.parametrize(
        ("part", "says_so"),
        [
            ({"type": "string", "pattern": "[a-z]+"}, "ignores 'pattern'"),
            ({"type": "array", "items": {"type": "string", "minLength": 2}}, "ignores 'minLength'"),
            ({"const": "x"}, "enum of one"),
            ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "write that"),
            ({"anyOf": [{"type": "string"}, {"type": "integer", "multipleOf": 2}]}, "ignores 'multipleOf'"),
            ({"enum": ["a", True]}, "strings and numbers"),
        ],
        ids=str,
    )
    def test_a_schema_that_would_be_ignored_in_part_is_refused(
        self, says: Says, part: dict[str, Any], says_so: str
    ) -> None:
        server = says(Reply(500))
        schema = {"type": "object", "properties": {"inner": part}}
        with new(server.url) as backend, pytest.raises(NotServed, match=says_so):
            gen(backend, json_schema=schema)
        assert server.bodies == []

    def test_names_of_properties_are_no_keywords(self, says: Says) -> None:
        schema = {"type": "object", "properties": {"pattern": {"type": "string", "default": "a"}}}
        assert asked(says, lambda backend: gen(backend, json_schema=schema))

    @pytest.mark.parametrize(
        ("choice", "calling"),
        [
            ("auto", {"mode": "AUTO"}),
            ("required", {"mode": "ANY"}),
            ("none", {"mode": "NONE"}),
            ("weather", {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        ],
    )
    def test_tools_are_declared(self, says: Says, choice: str, calling: dict[str, Any]) -> None:
        body = asked(says, lambda backend: gen(backend, tools=[weather], tool_choice=choice))
        assert body["toolConfig"] == {"functionCallingConfig": calling}
        ((declared,),) = (tool["functionDeclarations"] for tool in body["tools"])
        assert (declared["name"], declared["description"]) == ("weather", "Tomorrow's weather.")
        assert declared["parameters_json_schema"]["properties"]["where"]["type"] == "boolean"

    def test_tools_and_several_samples_dont_go_together(self, says: Says) -> None:
        with old(says(Reply(500)).url) as backend, pytest.raises(NotServed, match="one sample"):
            gen(backend, tools=[weather], n=2)

    def test_the_form_of_a_select_lists_the_choices(self, says: Says) -> None:
        answer = gemini_answer(gemini_candidate('{"choice": ', '"Lima"}', finish="STOP"))
        choices = ["Lima", 'a "quoted" one']
        for make, greedy in ((new, {}), (old, {"temperature": 0})):
            config = asked(says, lambda backend: select(backend, choices), make, answer)["generationConfig"]
            schema = config.pop("responseJsonSchema")
            assert config == {"responseMimeType": "application/json", **greedy}
            assert schema["properties"] == {"choice": {"type": "string", "enum": choices}}


class TestAnswers:
    def test_a_select_takes_the_choice_that_was_written(self, says: Says) -> None:
        server = says(Reply(body=[gemini_chunk('{"choi'), gemini_chunk('ce": "Lima"}', finish="STOP")]))
        with new(server.url, stream=True) as backend:
            call = select(backend, ["Cusco", "Lima"])
            assert (text_of(call), call.partial) == ("Lima", "")
            assert call.meta["choices_method"] == "constrained_decoding"
            with pytest.raises(NotServed, match="greedy_token_selection"):
                select(backend, ["Cusco", "Lima"], method=unconditional_likelihood_normalized)

    def test_thoughts_count_as_completion_and_are_no_text(self, says: Says) -> None:
        usage = {
            "promptTokenCount": 20,
            "cachedContentTokenCount": 15,
            "candidatesTokenCount": 2,
            "thoughtsTokenCount": 30,
            "totalTokenCount": 52,
        }
        thought = {"text": "Peru...", "thought": True}
        call = told(says, [gemini_chunk(thought), gemini_chunk("Lima", finish="STOP", usageMetadata=usage)])
        assert text_of(call) == call.partial == "Lima"
        assert call.meta == {
            "prompt_tokens": 20,
            "cached_tokens": 15,
            "completion_tokens": 32,
            "finish_reason": "stop",
        }

    def test_counts_of_nothing_arent_written(self, says: Says) -> None:
        call = told(says, gemini_answer(gemini_candidate(finish="MAX_TOKENS"), usageMetadata={"promptTokenCount": 20}))
        assert (call.text, call.error) == ("", None)
        assert call.meta == {
            "prompt_tokens": 20,
            "cached_tokens": 0,
            "completion_tokens": 0,
            "finish_reason": "length",
        }

    @pytest.mark.parametrize("streams", [True, False])
    def test_calls_of_tools_come_as_data(self, says: Says, streams: bool) -> None:
        calls = [
            {"functionCall": {"name": "weather", "args": {"where": True}, "id": "abc"}, "thoughtSignature": "c2ln"},
            {"functionCall": {"name": "weather", "args": {}}},
        ]
        whole = gemini_answer(gemini_candidate("Let me see.", *calls, finish="STOP"))
        pieces = [gemini_chunk("Let me "), gemini_chunk("see.", calls[0]), gemini_chunk(calls[1], finish="STOP")]
        call = told(says, pieces if streams else whole, tools=[weather])
        assert text_of(call) == "Let me see."
        assert call.tool_calls == (ToolCall("abc", "weather", {"where": True}), ToolCall("call_1", "weather", {}))
        assert call.meta["finish_reason"] == "tool_calls"

    def test_calls_of_tools_stand_in_the_prompts_that_go_on(self, says: Says) -> None:
        @sgl.function
        def program(s: sgl.ProgramState) -> None:
            s += sgl.user("Is it warm?")
            s += sgl.assistant(sgl.gen("call", tools=[weather]))
            s += sgl.user("Yes.")
            s += sgl.assistant(sgl.gen("answer"))

        called = gemini_candidate({"functionCall": {"name": "weather", "args": {}}}, finish="STOP")
        server = says(Reply(body=gemini_answer(called)), Reply(body=WHOLE))
        with new(server.url) as backend:
            assert program.run(backend=backend)["answer"] == "Lima"
        written = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
        assert server.bodies[1]["contents"][1] == {"role": "model", "parts": [{"text": written}]}

    def test_several_samples_come_in_one_piece(self, says: Says) -> None:
        candidates = [gemini_candidate(text, finish="STOP", index=i) for i, text in ((1, "Cusco"), (0, "Lima"))]
        server = says(Reply(body=gemini_answer(*candidates)))
        with old(server.url, stream=True) as backend:
            call = gen(backend, n=2)
        assert call.texts == ("Lima", "Cusco")
        assert call.partial == "Lima"
        assert call.meta["finish_reason"] == ["stop", "stop"]
        assert server.bodies[0]["generationConfig"]["candidateCount"] == 2
        assert server.paths[0].endswith(":generateContent")

    def test_too_few_samples_are_an_error(self, says: Says) -> None:
        assert "broke off" in told(says, WHOLE, n=2).error

    @pytest.mark.parametrize("k", [0, 1])
    def test_logprobs_come_with_the_likeliest(self, says: Says, k: int) -> None:
        found = {
            "chosenCandidates": [{"token": "Li", "tokenId": 7, "logProbability": -0.5}],
            "topCandidates": [{"candidates": [{"token": "La", "tokenId": 8, "logProbability": -0.25}]}] if k else [],
        }
        answer = gemini_answer(gemini_candidate("Li", finish="STOP", logprobsResult=found))
        server = says(Reply(body=answer))
        with new(server.url) as backend:
            call = gen(backend, logprobs=k)
        assert text_of(call) == "Li"
        assert call.logprobs == [TokenLogprob("Li", 7, -0.5, (("La", 8, -0.25),) if k else ())]
        expected = {**SETTINGS, "responseLogprobs": True, **({"logprobs": 1} if k else {})}
        assert server.bodies[0]["generationConfig"] == expected

    @pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII", "BLOCKLIST", "LANGUAGE"])
    def test_a_refusal_is_an_error_that_names_it(self, says: Says, reason: str) -> None:
        call = told(says, [gemini_chunk("Li"), gemini_event(gemini_answer({"finishReason": reason, "index": 0}))])
        assert call.error == f"the model refused to answer (after 2 characters): {reason}"
        assert call.texts == ()

    def test_other_ends_are_errors_that_say_why(self, says: Says) -> None:
        error = told(says, gemini_answer(gemini_candidate(finish="MALFORMED_FUNCTION_CALL"))).error
        assert error == "the answer ended after 0 characters by MALFORMED_FUNCTION_CALL"

    def test_what_is_said_of_an_end_is_told(self) -> None:
        """The client reads it only where it isn't the developer API's."""
        from google.genai import types

        samples = Samples(1, lambda _text: None)
        ended = types.Candidate(finish_reason=types.FinishReason.SAFETY, finish_message="of violence")
        samples.take(types.GenerateContentResponse(candidates=[ended]))
        with pytest.raises(AnswerError, match="SAFETY: of violence"):
            samples.answer()

    @pytest.mark.parametrize("streams", [True, False])
    def test_a_blocked_prompt_is_an_error(self, says: Says, streams: bool) -> None:
        blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
        error = told(says, [gemini_event(blocked)] if streams else blocked).error
        assert error == "the prompt was blocked: PROHIBITED_CONTENT"

    def test_an_answer_of_nothing_is_an_error(self, says: Says) -> None:
        assert "broke off after 0 characters" in told(says, {}).error

    def test_a_picture_instead_of_text_is_an_error(self, says: Says) -> None:
        picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
        error = told(says, gemini_answer(gemini_candidate(picture, finish="STOP"))).error
        assert error == "the model answered with inline_data, which is no text"


class TestClients:
    def test_without_a_key_nothing_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"):
            monkeypatch.delenv(variable, raising=False)
        with pytest.raises(ValueError, match="GEMINI_API_KEY"):
            GeminiBackend("gemini-3.8-flash")

    def test_a_given_client_is_used_as_it_is(self, says: Says) -> None:
        import google.genai as genai

        server = says(
            Reply(503, {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}), Reply(body=WHOLE)
        )
        options = genai.types.HttpOptions(
            base_url=server.url,
            headers={"X-Team": "cache"},
            retry_options=genai.types.HttpRetryOptions(attempts=2, initial_delay=0, jitter=0),
        )
        client = genai.Client(api_key="k", http_options=options)
        with GeminiBackend("gemini-3.8-flash", client=client, stream=False) as backend:
            assert text_of(gen(backend, HELLO)) == "Lima"
        assert [headers["x-team"] for headers in server.headers] == ["cache", "cache"]
        with pytest.raises(TypeError, match="api_key"):
            GeminiBackend("gemini-3.8-flash", client=client, api_key="k")
        with pytest.raises(TypeError, match=r"google\.genai\.Client"):
            GeminiBackend("gemini-3.8-flash", client=client.aio)

    def test_a_server_that_talks_no_json_is_an_error(self, says: Says) -> None:
        with new(says(Reply(body=["data: <html>"])).url, stream=True) as backend:
            assert "Failed to parse response as JSON" in gen(backend).error

    def test_streaming_that_was_turned_off_is_refused(self) -> None:
        with GeminiBackend("m", api_key="k", stream=False) as backend, pytest.raises(NotServed, match="stream=False"):
            backend.capabilities.need(Feature.STREAMING, "text_iter(...)")


def test_what_is_sent_is_json(says: Says) -> None:
    """Also the bytes of pictures and the texts of other alphabets."""
    body = asked(says, lambda backend: gen(backend, asked_about("Что это? ", PICTURE)))
    assert json.loads(json.dumps(body)) == body
    assert body["contents"][0]["parts"][0] == {"text": "Что это? "}
