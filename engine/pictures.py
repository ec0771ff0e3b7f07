"""Pictures of a prompt: read, made ready for the model's eyes, and given positions and keys of their own.

A picture's digest is that of what the model sees: its pixels after the model's own preprocessing. So the same picture
in another file (PNG, lossless WebP, other metadata) is the same to the cache, and another one never is.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.request import PENDING, RequestError, Tokens

if TYPE_CHECKING:
    pass

PLACE = -1
"""Stands for a picture in a prompt of token ids."""
PLACEHOLDER = "<image>"
"""Stands for one in a prompt that is text."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 50_000_000
KEPT = 64
"""Pictures that a reader remembers, so that one that comes again isn't made ready again."""

Source = "bytes | str | Path | Image"


class Picture(NamedTuple):
    """As the model's eyes take it."""

    digest: bytes
    """SHA-256 of the pixels and their shape."""
    pixels: npt.NDArray[np.float32]
    """[3, size, size], normalised."""


class PlacedPicture(NamedTuple):
    """A picture in a prompt."""

    start: int
    """Its first position."""
    n_tokens: int
    picture: Picture

    @property
    def end(self) -> int:
        return self.start + self.n_tokens


class Preprocess(Protocol):
    def __call__(self, image: Any) -> npt.NDArray[np.float32]:
        """An RGB picture -> [3, size, size], normalised."""


class PictureReader:
    """Reads pictures for one model."""

    def __init__(self, preprocess: Preprocess, *, n_tokens: int, image_token_id: int | None) -> None:
        """n_tokens: positions that each takes. image_token_id: of the tokenizer's own placeholder, if it has one."""
        self._preprocess = preprocess
        self.n_tokens = n_tokens
        self.image_token_id = image_token_id
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Picture] = OrderedDict()

    def read(self, source: Any) -> Picture:
        """source: a file's bytes, its path, an open PIL image, or a Picture, which was read before. May be called from
        several threads. Raises RequestError saying what is wrong with it."""
        if isinstance(source, Picture):
            return source
        content = _content(source)
        key = hashlib.sha256(content if isinstance(content, bytes) else _raw(content)).digest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        image = _decoded(content) if isinstance(content, bytes) else content.convert("RGB")
        pixels = np.ascontiguousarray(self._preprocess(image), np.float32)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        picture = Picture(digest, pixels)
        with self._lock:
            self._known[key] = picture
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return picture


def place(
    tokens: Sequence[int], pictures: Sequence[Picture], n_tokens: int
) -> tuple[Tokens, tuple[PlacedPicture, ...]]:
    """The prompt's key, with each PLACE taken by the next picture's positions. As many PLACEs as pictures.

    A position's key is negative and made from the picture's digest and the offset in it, so that equal pictures have
    equal keys and others don't (but for one chance in 2 ** 63 a position).
    """
    parts: list[npt.NDArray[np.int64]] = []
    placed: list[PlacedPicture] = []
    given = np.asarray(tokens, np.int64)
    begin = n = 0
    for at, picture in zip(np.flatnonzero(given == PLACE).tolist(), pictures, strict=True):
        parts += [given[begin:at], keys_of(picture, n_tokens)]
        n += at - begin
        placed.append(PlacedPicture(n, n_tokens, picture))
        n, begin = n + n_tokens, at + 1
    return np.concatenate([*parts, given[begin:]]), tuple(placed)


def keys_of(picture: Picture, n_tokens: int) -> npt.NDArray[np.int64]:
    """Negative, none of them PENDING or PLACE: int64 [n_tokens]."""
    room = -(PENDING + 2)  # 2 ** 63 - 2
    hashed = (hashlib.sha256(picture.digest + struct.pack("<q", i)).digest() for i in range(n_tokens))
    return np.fromiter((-2 - int.from_bytes(h[:8], "little") % (room - 1) for h in hashed), np.int64, n_tokens)


def _content(source: Any) -> Any:
    """A file's bytes, or the PIL image itself."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise RequestError(f"image {str(source)!r} can't be read: {error.strerror}") from error
    if hasattr(source, "convert") and hasattr(source, "tobytes"):
        return source
    raise RequestError(f"image {type(source).__name__} is not allowed: give a file's bytes, its path or a PIL image")


def _raw(image: Any) -> bytes:
    return f"{image.mode}{image.size}".encode() + image.tobytes()


def _decoded(data: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise RequestError(
                    f"the image has {width} x {height} pixels, {MAX_PIXELS} are allowed: make it smaller"
                )
            return image.convert("RGB")
    except RequestError:
        raise
    except Exception as error:  # decoders raise many kinds for broken files
        told = "is none" if isinstance(error, UnidentifiedImageError) else "is cut off or broken"
        raise RequestError(f"the image {told}: give a whole PNG, JPEG, WebP or GIF file") from None
