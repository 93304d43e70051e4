"""The architectures that tersor promises to take, as `transformers` builds them from a config."""

from __future__ import annotations

import pytest
import torch

from ..small_transformers import IMAGES, MODELS, built, traced


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_eager(name: str) -> None:
    (model, inputs), program = built(name), traced(name, dynamic=True)
    program.verify()
    with torch.no_grad():
        expected = model(**inputs, **({} if name in IMAGES else {"use_cache": False}))
        found = program(**inputs)
    assert type(found) is type(expected)
    assert list(found.keys()) == list(expected.keys())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_deepseek_keeps_its_experts_setting_and_the_history_says_what_was_traced() -> None:
    (model, _), program = built("deepseek"), traced("deepseek")
    assert model.config._experts_implementation == "grouped_mm"
    assert any("batched_mm" in note for note in program.history[0].notes)


def test_llama_takes_other_sizes_keeps_tied_embeddings_and_says_that_its_cache_is_left_out() -> None:
    (model, _), program = built("llama"), traced("llama", dynamic=True)
    assert model.config.use_cache
    assert any("use_cache=False" in note for note in program.history[0].notes)
    assert program.tensor("model.embed_tokens.weight") is program.tensor("lm_head.weight")
    more = {"input_ids": torch.randint(0, 50, (3, 5))}
    with torch.no_grad():
        torch.testing.assert_close(program(**more).logits, model(**more).logits, rtol=1e-4, atol=1e-5)
