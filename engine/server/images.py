"""Images of a request: from data URLs and from files below one folder, decoded with limits. Nothing is fetched."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image

from engine.server.config import ServerConfig
from engine.server.errors import ApiError

MEDIA_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
_FORMATS = tuple(MEDIA_TYPES.values())


class ImageLimits(NamedTuple):
    max_bytes: int
    """Of one image's file."""
    max_pixels: int
    max_images: int
    """In one request."""
    folder: Path | None
    """Files may be named below it; None: data URLs only."""

    @classmethod
    def of(cls, config: ServerConfig) -> ImageLimits:
        return cls(config.max_image_bytes, config.max_image_pixels, config.max_images, config.images_dir)


class ChatPrompt(NamedTuple):
    tokens: list[int]
    """PLACE where an image stands."""
    images: list[Image.Image]

    def n_tokens(self, image_tokens: int) -> int:
        """Once images take their positions."""
        return len(self.tokens) + len(self.images) * (image_tokens - 1)


class RequestImage(NamedTuple):
    pixels: Image.Image
    """RGB. Of an animation, the first frame."""
    digest: str
    """SHA-256 of the file, hex: equal files are the same image to the cache."""


def read_image(url: str, limits: ImageLimits, *, param: str) -> RequestImage:
    """The image behind a `data:` URL, a `file://` URL or a path relative to the folder. Takes time: not for the event
    loop.

    param: the field of the request, for the message. Raises ApiError 400 for what can't be read or is over a limit.
    """
    scheme = urlsplit(url[:16]).scheme.lower()
    if scheme == "data":
        return decode_image(_data_url(url, limits, param), limits, param=param)
    if scheme in ("http", "https"):
        raise _refused(param, "this server fetches nothing: send the image as a data URL (data:image/png;base64,...)")
    return decode_image(_file(url, scheme, limits, param), limits, param=param)


def read_base64(data: str, media_type: str, limits: ImageLimits, *, param: str) -> RequestImage:
    """Raises ApiError 400."""
    if media_type not in MEDIA_TYPES:
        raise _refused(
            param, f"media type {media_type!r:.60} is not served: it must be one of {', '.join(MEDIA_TYPES)}"
        )
    return decode_image(_from_base64(data, limits, param), limits, param=param)


def decode_image(data: bytes, limits: ImageLimits, *, param: str) -> RequestImage:
    """Raises ApiError 400 for what is no PNG, JPEG, WebP or GIF, is broken, or has too many pixels."""
    _check_size(len(data), limits, param)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = image.size
            if width * height <= limits.max_pixels:
                return RequestImage(image.convert("RGB"), hashlib.sha256(data).hexdigest())
    except Image.DecompressionBombError:
        raise _refused(param, f"it has more than {limits.max_pixels} pixels, the limit: make it smaller") from None
    except Exception as error:  # decoders raise many kinds for broken files
        told = "it is cut off or broken" if not isinstance(error, Image.UnidentifiedImageError) else "it is none"
        raise _refused(param, f"{told}: send a whole PNG, JPEG, WebP or GIF file") from None
    raise _refused(param, f"{width} x {height} pixels are over the limit of {limits.max_pixels}: make it smaller")


def check_count(n_images: int, limits: ImageLimits) -> None:
    """Raises ApiError 400 for more images than one request may bring."""
    if n_images > limits.max_images:
        raise _refused("messages", f"{n_images} images in one request, {limits.max_images} are allowed")


def _data_url(url: str, limits: ImageLimits, param: str) -> bytes:
    head, comma, payload = url.partition(",")
    media_type, *attributes = head[len("data:") :].split(";")
    if not comma:
        raise _refused(param, "the data URL has no comma: it must look like data:image/png;base64,...")
    if media_type.lower() not in MEDIA_TYPES:
        raise _refused(
            param, f"media type {media_type!r:.60} is not served: it must be one of {', '.join(MEDIA_TYPES)}"
        )
    if "base64" not in (attribute.strip().lower() for attribute in attributes):
        raise _refused(param, "the data URL must be base64: data:image/png;base64,...")
    return _from_base64(
        unquote_to_bytes(payload).decode("ascii", "replace") if "%" in payload else payload, limits, param
    )


def _from_base64(text: str, limits: ImageLimits, param: str) -> bytes:
    _check_size(len(text) * 3 // 4 - 2, limits, param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(param, f"the base64 text can't be read: {error}") from None


def _file(url: str, scheme: str, limits: ImageLimits, param: str) -> bytes:
    if limits.folder is None:
        raise _refused(param, "this server reads no files: send the image as a data URL (data:image/png;base64,...)")
    name = url
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise _refused(param, "a file URL must name no other machine: file:///path")
        name = os.fsdecode(unquote_to_bytes(parts.path))
    elif scheme:
        raise _refused(param, f"the scheme {scheme!r} is not served: use data: or file:")
    folder = limits.folder.resolve()
    elsewhere = _refused(param, "there is no such file in the images folder of this server")
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder):
            raise elsewhere
        # opened once and asked then: what is read is what was looked at; O_NONBLOCK so that a pipe doesn't hang
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise elsewhere
            _check_size(about.st_size, limits, param)
            return file.read(limits.max_bytes + 1)
    except (OSError, ValueError, RuntimeError):
        raise elsewhere from None


def _check_size(n_bytes: int, limits: ImageLimits, param: str) -> None:
    if n_bytes > limits.max_bytes:
        raise _refused(param, f"{n_bytes} bytes are over the limit of {limits.max_bytes}: send a smaller file")


def _refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"the image {param} can't be used: {why}", param=param, code="invalid_image")
