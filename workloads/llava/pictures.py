"""The pictures: given, or 24 made from a few real ones, or drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from workloads.base import DataSource
from workloads.data import DataError, data_folder, digest, read_bytes
from workloads.llava.sample import draw

LONGEST_SIDE = 512
"""Of a stand-in, pixels."""


class Pictures(NamedTuple):
    source: DataSource
    files: Mapping[str, bytes]
    """By the picture's name."""


def load_pictures(names: Sequence[str], image_dir: str | None, data_dir: str | None) -> Pictures:
    """A picture for each name. `image_dir`, or else a folder `images` beside the questions, must have all of them.

    Else each is made from a photograph of the folder sample_images of the data; else drawn. Raises DataError for
    pictures that are missing or can't be read.
    """
    if image_dir is not None:
        return _given(names, Path(image_dir).expanduser(), f"workload.image_dir={image_dir}")
    questions, _ = data_folder("llava_bench", data_dir)
    if questions is not None and (questions.path / "images").is_dir():
        return _given(names, questions.path / "images", questions.given_as)
    photographs = _photographs(data_dir)
    if photographs:
        return _stand_ins(names, photographs)
    made = {name: draw(name) for name in names}
    note = "pictures drawn by our own code, not LLaVA-Bench's; for those set workload.image_dir=FOLDER"
    return Pictures(DataSource("sample", "", digest(made), note), made)


def _given(names: Sequence[str], folder: Path, given_as: str) -> Pictures:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{given_as}: {len(missing)} of {len(names)} pictures aren't in {folder}: {few}")
    files = {name: read_bytes(folder / name) for name in names}
    for name, content in files.items():
        _opened(content, folder / name)
    return Pictures(DataSource("files", str(folder), digest(files)), files)


def _photographs(data_dir: str | None) -> list[Path]:
    folder, _ = data_folder("sample_images", data_dir)
    if folder is None or folder.path.name != "sample_images":
        return []
    return sorted(folder.path.glob("*.jpg"))


def _stand_ins(names: Sequence[str], photographs: Sequence[Path]) -> Pictures:
    contents = {path.name: read_bytes(path) for path in photographs}
    images = [_opened(contents[path.name], path) for path in photographs]
    if len(names) > len(images) * len(CHANGES):
        raise DataError(
            f"{len(names)} pictures are needed, {len(images)} photographs of {photographs[0].parent} give "
            f"{len(images) * len(CHANGES)}; set workload.image_dir=FOLDER"
        )
    made = {name: _as_jpeg(CHANGES[i // len(images)](images[i % len(images)])) for i, name in enumerate(sorted(names))}
    note = (
        f"LLaVA-Bench's pictures aren't there: {len(names)} others stand in, made from {len(images)} photographs "
        "(mirrored, cropped, turned, recoloured); for the real ones set workload.image_dir=FOLDER"
    )
    return Pictures(DataSource("files", str(photographs[0].parent), digest(contents), note), made)


def _opened(content: bytes, path: Path) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: no picture that can be read ({error}); get the file again") from error
    return image.convert("RGB")


def _as_jpeg(image: Image.Image) -> bytes:
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 5, height // 5, width - width // 5, height - height // 5))


def _recoloured(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (green, blue, red))


CHANGES: Sequence[Callable[[Image.Image], Image.Image]] = (
    lambda image: image,
    ImageOps.mirror,
    _middle,
    ImageOps.flip,
    _recoloured,
    ImageChops.invert,
)
"""What makes several pictures of one."""
