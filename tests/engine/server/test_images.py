"""Images of a request: what is read, what is refused, and that nothing outside the folder can be reached."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from engine.server.config import ServerConfig
from engine.server.errors import ApiError
from engine.server.images import ImageLimits, check_count, decode_image, read_base64, read_image

LIMITS = ImageLimits(max_bytes=10_000, max_pixels=1_000, max_images=2, folder=None)


def picture(form: str = "PNG", size: tuple[int, int] = (4, 3), color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, form)
    return file.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def refusal(url: str, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ApiError) as caught:
        read_image(url, limits, param="messages.0")
    assert caught.value.status == 400
    assert caught.value.param == "messages.0"
    return caught.value.message


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_in_a_data_url_is_decoded_and_named_by_its_bytes(form: str) -> None:
    data = picture(form)
    image = read_image(data_url(data, f"image/{form.lower()}"), LIMITS, param="x")
    assert (image.pixels.size, image.pixels.mode) == ((4, 3), "RGB")
    assert image.digest == hashlib.sha256(data).hexdigest()
    red, green, blue = image.pixels.getpixel((1, 1))  # type: ignore[misc]
    assert red > 240 > 20 > max(green, blue)


def test_of_an_animation_the_first_frame_is_seen() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), color) for color in ("blue", "red")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    image = decode_image(file.getvalue(), LIMITS, param="x")
    assert image.pixels.getpixel((0, 0)) == (0, 0, 255)


def test_percent_signs_and_capitals_in_a_data_url_are_understood() -> None:
    url = data_url(picture()).replace("data:image/png", "DATA:Image/PNG").replace("+", "%2B").replace("=", "%3D")
    assert read_image(url, LIMITS, param="x").pixels.size == (4, 3)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.org/a.png", "fetches nothing"),
        ("HTTP://example.org/a.png", "fetches nothing"),
        ("ftp://example.org/a.png", "reads no files"),
        ("file:///etc/passwd", "reads no files"),
        ("a.png", "reads no files"),
        ("", "reads no files"),
        ("data:image/png;base64", "no comma"),
        ("data:text/html;base64,aaaa", "media type"),
        ("data:image/svg+xml;base64,aaaa", "media type"),
        ("data:image/png,aaaa", "must be base64"),
        ("data:image/png;base64,a!b", "base64"),
        ("data:image/png;base64,", "it is none"),
        (data_url(b"not an image at all"), "it is none"),
        (data_url(picture()[:45]), "cut off or broken"),
        (data_url(picture("TIFF")), "it is none"),
        (data_url(b"x" * 20_000), "bytes are over the limit"),
        (data_url(picture(size=(50, 50))), "50 x 50 pixels"),
    ],
)
def test_what_is_no_image_is_refused_saying_why(url: str, says: str) -> None:
    assert says in refusal(url)


def test_a_decompression_bomb_is_never_unpacked() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert "make it smaller" in refusal(data_url(b"\x89PNG\r\n\x1a\n" + chunk + picture()[33:]))


def test_base64_without_a_url_names_its_type() -> None:
    text = base64.b64encode(picture()).decode()
    assert read_base64(text, "image/png", LIMITS, param="x").pixels.size == (4, 3)
    with pytest.raises(ApiError, match="media type"):
        read_base64(text, "image/bmp", LIMITS, param="x")


def test_a_request_brings_only_so_many_images() -> None:
    check_count(2, LIMITS)
    with pytest.raises(ApiError, match="3 images"):
        check_count(3, LIMITS)


@pytest.fixture
def limits(tmp_path: Path) -> ImageLimits:
    """A folder with an image, beside one that nobody may see."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.png").write_bytes(picture())
    (folder / "words.txt").write_text("words")
    (tmp_path / "secret.png").write_bytes(picture(color="green"))
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in.png").symlink_to(folder / "sub" / "a b.png")
    (folder / "big.png").write_bytes(b"x" * 20_000)
    os.mkfifo(folder / "pipe.png")
    return LIMITS._replace(folder=folder)


def test_a_file_below_the_folder_is_read_by_path_and_by_url(limits: ImageLimits) -> None:
    assert limits.folder is not None
    whole = limits.folder / "sub" / "a b.png"
    for url in ("sub/a b.png", "./sub/../sub/a b.png", "in.png", f"file://{whole}", whole.as_uri(), str(whole)):
        assert read_image(url, limits, param="x").pixels.size == (4, 3)


def test_nothing_outside_the_folder_can_be_reached_or_told_apart_from_nothing(
    limits: ImageLimits, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.png"
    tries = ["../secret.png", "out.png", "up/secret.png", str(outside), outside.as_uri(), "sub/%2e%2e/../../secret.png"]
    tries += ["file:///%2e%2e/etc/passwd", "nothing.png", "sub", "pipe.png", "a\0b", "/dev/zero", "x" * 5000]
    assert len({refusal(url, limits) for url in tries}) == 1


def test_a_file_is_held_to_the_same_limits(limits: ImageLimits) -> None:
    assert "bytes are over the limit" in refusal("big.png", limits)
    assert "it is none" in refusal("words.txt", limits)
    assert "no other machine" in refusal("file://host/a.png", limits)
    assert "scheme" in refusal("ftp://host/a.png", limits)


def test_the_limits_are_the_servers(tmp_path: Path) -> None:
    config = ServerConfig(max_image_bytes=5, max_image_pixels=6, max_images=7, images_dir=tmp_path)
    assert ImageLimits.of(config) == (5, 6, 7, tmp_path)
