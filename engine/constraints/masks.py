"""Packed masks: bit j of word w stands for token 32 * w + j."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.constraints.base import Mask


def packed(tokens: Sequence[int] | npt.NDArray[np.int64], vocab_size: int) -> Mask:
    """The mask in which these tokens are set."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[np.asarray(tokens, np.int64)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
