"""The model's own image processor: its file where the model has one, else CLIP's for the size of its eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.models.config import ModelConfig, ModelError
from engine.models.weights import read_json
from engine.pictures import PictureReader

FILES = ("preprocessor_config.json", "processor_config.json")


def picture_reader(config: ModelConfig, folder: Path | None) -> PictureReader:
    """folder: of the model; None for a named shape. Raises ModelError for a processor that doesn't fit."""
    vision = config.vision
    assert vision is not None
    processor = _processor(folder, vision.image_size)

    def preprocess(image: Any) -> npt.NDArray[np.float32]:
        return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)

    from PIL import Image

    shape = preprocess(Image.new("RGB", (vision.image_size + 9, vision.image_size + 1))).shape
    if shape != (3, vision.image_size, vision.image_size):
        where = folder or "CLIP's processor"
        raise ModelError(
            f"{where}: its processor makes pictures of {shape}; the model takes {vision.image_size} a side"
        )
    return PictureReader(preprocess, n_tokens=vision.n_tokens, image_token_id=vision.image_token_id)


def _processor(folder: Path | None, size: int) -> Any:
    """CLIP's image processor on PIL, which needs no torchvision."""
    settings: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    for name in FILES:
        if folder is not None and (folder / name).is_file():
            found: dict[str, Any] = dict(read_json(folder / name))
            found = found["image_processor"] if isinstance(found.get("image_processor"), dict) else found
            if "crop_size" in found or "size" in found:
                kind = str(found.get("image_processor_type", "CLIPImageProcessor"))
                if not kind.startswith("CLIPImageProcessor"):
                    raise ModelError(f"{folder / name}: image processor {kind!r} isn't supported; CLIP's is")
                settings = found
                break
    return _pil_processor().from_dict(settings)


def _pil_processor() -> Any:
    """Its name has changed between releases of transformers."""
    import transformers

    for name in ("CLIPImageProcessorPil", "CLIPImageProcessor"):
        if (found := getattr(transformers, name, None)) is not None:
            return found
    raise ModelError("this transformers has no CLIP image processor: install transformers 5")
