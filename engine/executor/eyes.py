"""Encodings of pictures, kept by what the picture shows: a tower is run once for each, however many prompts hold it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.executor.base import Row
from engine.models.llama import Given
from engine.pictures import Picture

ENCODINGS_BYTES = 1 << 28


class Encode(Protocol):
    def __call__(self, pixels: Tensor, /) -> Tensor:
        """[images, 3, size, size] -> [images, tokens, hidden]"""


class Eyes:
    """Least recently used encodings go first. Counts for metrics: `encoded` pictures and `found` ones."""

    def __init__(self, vision: Encode, device: torch.device, max_bytes: int = ENCODINGS_BYTES) -> None:
        """max_bytes: of the encodings kept; what a step needs is kept as long as it takes, whatever it weighs."""
        self.encoded = 0
        self.found = 0
        self._vision = vision
        self._device = device
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def given(self, rows: Sequence[Row]) -> Given | None:
        """Embeddings for the positions of pictures among the packed tokens of these rows; None when there are none."""
        wanted: list[tuple[int, Picture, int, int]] = []
        packed = 0
        for row in rows:
            for placed in row.request.pictures:
                a, b = max(placed.start, row.start), min(placed.end, row.end)
                if a < b:
                    wanted.append((packed + a - row.start, placed.picture, a - placed.start, b - placed.start))
            packed += row.n_new
        if not wanted:
            return None
        encodings = self._encodings({picture.digest: picture for _, picture, _, _ in wanted})
        at = np.concatenate([np.arange(first, first + b - a) for first, _, a, b in wanted])
        parts = [encodings[picture.digest][a:b] for _, picture, a, b in wanted]
        return Given(torch.from_numpy(at).to(self._device), torch.cat(parts))

    def _encodings(self, pictures: dict[bytes, Picture]) -> dict[bytes, Tensor]:
        missing = [picture for digest, picture in pictures.items() if digest not in self._kept]
        self.encoded += len(missing)
        self.found += len(pictures) - len(missing)
        found = {digest: self._kept[digest] for digest in pictures if digest in self._kept}
        for picture in missing:  # one by one: an encoding's bits shouldn't depend on what is encoded beside it
            pixels = torch.from_numpy(picture.pixels).to(self._device)
            found[picture.digest] = self._keep(picture.digest, self._vision(pixels.unsqueeze(0))[0])
        for digest in pictures:
            if digest in self._kept:
                self._kept.move_to_end(digest)
        return found

    def _keep(self, digest: bytes, encoding: Tensor) -> Tensor:
        self._kept[digest] = encoding
        self._bytes += encoding.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes
        return encoding
