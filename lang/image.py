"""Reading pictures."""

from __future__ import annotations

from pathlib import Path

from lang.prompt import Image

_SIGNS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def image_of(source: str | Path | bytes) -> Image:
    """The picture in a file, or of its bytes. Raises OSError, or ValueError for what is no picture of a known kind."""
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    elif isinstance(source, str | Path):
        data, name = Path(source).expanduser().read_bytes(), str(source)
    else:
        raise TypeError(f"image({source!r:.60}) is not allowed: it must be a path or the file's bytes")
    for sign, media_type in _SIGNS:
        if data.startswith(sign):
            return Image(data, media_type)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Image(data, "image/webp")
    raise ValueError(f"image({name}): no PNG, JPEG, GIF or WebP begins like that")
