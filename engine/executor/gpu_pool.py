"""The paged KV pool on the device: K and V of every slot of every layer, as they are or quantised."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.copy_and_turn import copy_and_turn
from engine.kernels.paged import PagedKV
from engine.models.config import ModelConfig

KV_DTYPES = {"int8": torch.int8, "fp8_e4m3": torch.float8_e4m3fn}
"""Quantised forms, by the name that the configuration gives them."""
SCALE_BYTES = 4


def kv_dtype_named(name: str, model_dtype: torch.dtype) -> torch.dtype:
    """`auto` is the model's own. Raises ValueError for unknown names."""
    if name == "auto":
        return model_dtype
    if name not in KV_DTYPES:
        raise ValueError(f"kv_dtype={name!r} is not allowed: choose one of auto, {', '.join(KV_DTYPES)}")
    return KV_DTYPES[name]


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that K and V of all layers take for one token, scales included."""
    scales = 2 * config.n_layers * config.n_kv_heads * SCALE_BYTES if dtype in KV_DTYPES.values() else 0
    return config.kv_elements_per_token * dtype.itemsize + scales


class GpuPool:
    """`n_pages` pages of `page_size` tokens; slot s is token s % page_size of page s // page_size."""

    def __init__(
        self, config: ModelConfig, *, n_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.n_layers, config.n_kv_heads, n_pages * page_size, config.head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.k_scale: Tensor | None = None
        self.v_scale: Tensor | None = None
        if dtype in KV_DTYPES.values():
            self.k_scale = torch.empty(shape[:-1], dtype=torch.float32, device=device)
            self.v_scale = torch.empty(shape[:-1], dtype=torch.float32, device=device)
        self._layers = [
            PagedKV(
                self.k[i],
                self.v[i],
                page_size,
                None if self.k_scale is None else self.k_scale[i],
                None if self.v_scale is None else self.v_scale[i],
            )
            for i in range(config.n_layers)
        ]

    def copy(self, source: Tensor, target: Tensor, turn: tuple[Tensor, Tensor] | None) -> None:
        """K and V of all layers, to other slots; see `copy_and_turn`."""
        copy_and_turn(self.k, self.v, source, target, turn, self.k_scale, self.v_scale)

    def layer(self, layer: int) -> PagedKV:
        return self._layers[layer]
