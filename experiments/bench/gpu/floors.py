"""What a step of the whole model must move and compute, counted from its shape."""

from __future__ import annotations

from collections.abc import Sequence

from engine.kernels.roofline import Work
from engine.models.config import ModelConfig


def decode_step(config: ModelConfig, contexts: Sequence[int], *, number_bytes: int, kv_token_bytes: int) -> Work:
    """One new token for each request: every weight is read once, and the K and V of every context.

    contexts: keys each request attends to, the new one included. number_bytes: of a weight. kv_token_bytes: of K and V
    of one token in all layers, scales included.
    """
    return step(config, [1] * len(contexts), contexts, len(contexts), number_bytes, kv_token_bytes)


def prefill(config: ModelConfig, tokens: int, *, number_bytes: int, kv_token_bytes: int) -> Work:
    """A prompt of `tokens` from an empty cache, and the logits of its last token."""
    return step(config, [tokens], [tokens], 1, number_bytes, kv_token_bytes)


def step(
    config: ModelConfig,
    new: Sequence[int],
    contexts: Sequence[int],
    n_logits: int,
    number_bytes: int,
    kv_token_bytes: int,
) -> Work:
    """Rows of new[i] tokens that end a context of contexts[i] tokens.

    Of attention, only the scores that the causal mask leaves are counted. The embedding is a look-up of a few rows.
    """
    c = config
    head = c.hidden_size * c.vocab_size
    scores = sum(n * context - n * (n - 1) // 2 for n, context in zip(new, contexts, strict=True))
    return Work(
        bytes=(c.n_layer_parameters + head) * number_bytes + (sum(contexts) + sum(new)) * kv_token_bytes,
        operations=2 * sum(new) * c.n_layer_parameters
        + 2 * n_logits * head
        + 4 * c.n_layers * c.n_heads * c.head_dim * scores,
    )


def attention(
    heads: int, kv_heads: int, head_dim: int, new: Sequence[int], contexts: Sequence[int], *, kv_bytes: int = 2
) -> Work:
    """One layer's attention: q, K, V read and the answers written once. kv_bytes: of a number in the pool."""
    scores = sum(n * context - n * (n - 1) // 2 for n, context in zip(new, contexts, strict=True))
    key = 2 * kv_heads * (head_dim * kv_bytes + (4 if kv_bytes == 1 else 0))
    return Work(bytes=4 * head_dim * heads * sum(new) + key * sum(contexts), operations=4 * heads * head_dim * scores)
