"""Messages of the system, the user and the assistant."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend

CHAT = "### system\nBe brief.\n\n### user\nHello\n\n### assistant\nok\n\n"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "ok"},
]


@sgl.function
def by_call(s):
    s += sgl.system("Be brief.")
    s += sgl.user("Hel" + "lo") + sgl.assistant(sgl.gen("answer"))


@sgl.function
def by_pair(s):
    s += sgl.system_begin() + "Be brief." + sgl.system_end()
    s += sgl.user_begin()
    s += "Hello"
    s += sgl.user_end() + sgl.assistant_begin() + sgl.gen("answer") + sgl.assistant_end()


@sgl.function
def by_block(s):
    s.system("Be brief.")
    with s.user():
        s += "Hello"
    with s.assistant():
        s += sgl.gen("answer")


@pytest.mark.parametrize("program", [by_call, by_pair, by_block], ids=lambda program: program.name)
def test_three_ways_to_write_a_chat(program):
    backend = MockBackend()
    state = program.run(backend=backend)
    assert state.text() == CHAT
    assert state.messages() == MESSAGES
    (call,) = backend.log
    assert call.prompt == "### system\nBe brief.\n\n### user\nHello\n\n### assistant\n"
    assert [message.role for message in call.request.messages()] == ["system", "user", "assistant"]


def test_a_message_is_there_once_it_has_ended():
    seen = []

    @sgl.function
    def program(s):
        s += sgl.user_begin() + "Hello"
        seen.append(s.messages())
        s += sgl.user_end()
        seen.append(s.messages())

    program.run(backend=MockBackend())
    assert seen == [[], [{"role": "user", "content": "Hello"}]]


def test_text_has_no_messages():
    @sgl.function
    def program(s):
        s += "Hello" + sgl.gen("x")

    assert program.run(backend=MockBackend()).messages() == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([sgl.user_begin(), sgl.assistant_begin()], r"assistant\(\) inside user\(\): roles can't be nested"),
        ([sgl.user_begin(), sgl.assistant_end()], r"assistant_end\(\) inside user\(\)"),
        ([sgl.user_end()], r"user_end\(\) outside of any role"),
    ],
)
def test_roles_cannot_be_nested_or_crossed(parts, message):
    @sgl.function
    def program(s):
        for part in parts:
            s += part

    with pytest.raises(ValueError, match=message):
        program.run(backend=MockBackend())


def test_a_message_inside_a_message_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match=r"assistant\(\) inside user\(\)"):
        sgl.user("a" + sgl.assistant("b"))


def test_a_block_inside_a_block_is_refused():
    @sgl.function
    def program(s):
        with s.user(), s.assistant():
            pass

    with pytest.raises(ValueError, match="can't be nested"):
        program.run(backend=MockBackend())


def test_images_stand_in_messages(tmp_path):
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n...")

    @sgl.function
    def program(s, path):
        s += sgl.user(sgl.image(path) + "What is this?")
        s += sgl.assistant(sgl.gen("answer"))

    backend = MockBackend()
    state = program.run(str(picture), backend=backend)
    assert state.text() == "### user\n<image>What is this?\n\n### assistant\nok\n\n"
    assert [part["type"] for part in state.messages()[0]["content"]] == ["image_url", "text"]
    assert [image.media_type for image in backend.log[0].request.images] == ["image/png"]


def test_equal_pictures_are_equal(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\nsame")
    a, b = (sgl.image(tmp_path / name).parts[0] for name in ("a.png", "b.png"))
    assert a == b
    assert a.digest == b.digest
