"""What stands before a call, as text and as messages."""

import pytest

from lang.image import image_of
from lang.prompt import PLAIN, ChatStyle, Image, Message, Prompt, RoleMark

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
USER, USER_END = RoleMark("user", True), RoleMark("user", False)
ANSWER = RoleMark("assistant", True)


def test_neighbouring_texts_are_one_and_empty_ones_are_left_out():
    assert Prompt.of(["a", "", "b", USER, "", USER_END, "c"]).pieces == ("ab", USER, USER_END, "c")
    assert (Prompt.of(["a"]) + Prompt.of(["b"])).pieces == ("ab",)


def test_roles_are_written_in_the_style():
    prompt = Prompt.of([USER, "hi", USER_END, ANSWER])
    assert prompt.text(PLAIN) == "### user\nhi\n\n### assistant\n"
    style = ChatStyle("mine", {"user": "<u>", "assistant": "<a>"}, {"user": "</u>", "assistant": "</a>"}, "<s>", "<d>")
    assert prompt.text(style) == "<s><d><u>hi</u><a>"
    assert Prompt.of(["hi"]).text(style) == "hi", "without roles nothing is added"


def test_a_default_system_message_gives_way_to_the_programs_own():
    style = ChatStyle("mine", dict.fromkeys(("system", "user"), "["), dict.fromkeys(("system", "user"), "]"), "", "<d>")
    assert Prompt.of([RoleMark("system", True), "s", RoleMark("system", False)]).text(style) == "[s]"


def test_a_role_that_the_style_has_not_is_an_error():
    style = ChatStyle("the style of mine", {"user": ""}, {"user": ""})
    with pytest.raises(ValueError, match="the style of mine has no message of the system: it knows user"):
        Prompt.of([RoleMark("system", True)]).text(style)


def test_messages():
    prompt = Prompt.of([USER, "a", Image(PNG, "image/png"), "b", USER_END, ANSWER, "c"])
    picture = Image(PNG, "image/png")
    assert prompt.messages() == (Message("user", ("a", picture, "b"), False), Message("assistant", ("c",), True))
    assert prompt.messages()[1].as_data() == {"role": "assistant", "content": "c"}
    told = prompt.messages()[0].as_data()["content"]
    assert [part["type"] for part in told] == ["text", "image_url", "text"]
    assert told[1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_prompt_without_roles_is_one_message_of_the_user():
    assert Prompt.of(["a", "b"]).messages() == (Message("user", ("ab",), False),)


def test_text_between_messages_is_refused_where_only_messages_go():
    with pytest.raises(ValueError, match=r"' x' stands between roles: .* put it inside"):
        Prompt.of([USER, USER_END, " x"]).messages()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
    ],
)
def test_a_picture_is_known_by_its_first_bytes(data, kind, tmp_path):
    (tmp_path / "file").write_bytes(data)
    assert image_of(data) == image_of(tmp_path / "file") == image_of(str(tmp_path / "file"))
    assert image_of(data).media_type == kind


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"image\(4 bytes\): no PNG"):
        image_of(b"text")
    with pytest.raises(TypeError, match="a path or the file's bytes"):
        image_of(3)
