from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from engine.cost import PrefillCost
from engine.models.load import load_model


def test_the_cost_is_that_of_the_parts() -> None:
    cost = PrefillCost(per_token=3.0, per_pair=0.5)
    assert cost(10, 7) == pytest.approx(sum(cost(10 + i, 1) for i in range(7)))


def test_a_token_costs_two_operations_a_parameter_of_the_layers() -> None:
    config = load_model("tiny").config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
        )
    )
    matrices = sum(w.numel() for name, w in theirs.named_parameters() if ".layers." in name and w.ndim == 2)
    assert config.n_layer_parameters == matrices
    cost = PrefillCost.of(config, flops=1.0)
    assert cost.per_token == 2 * matrices
    assert cost(0, 1) - cost.per_token == 4 * config.n_layers * config.n_heads * config.head_dim
