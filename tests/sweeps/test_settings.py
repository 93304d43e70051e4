"""What a sweep tries: options laid over recipes, lists, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tersor as ts
from tersor.ir.errors import RecipeError, TersorError
from tersor.sweeps import Grid
from tersor.sweeps.fingerprint import fingerprint
from tersor.sweeps.settings import check, laid_over, settings_of, value_text
from tersor.sweeps.sweep_file import load_sweep

RECIPE: dict[str, Any] = {
    "passes": ["canonicalize", {"prune_channels": {"target": {"macs": 0.5}}}, {"quantize": {"scheme": "int8"}}]
}


def test_a_grid_is_every_combination_in_order() -> None:
    grid = Grid(RECIPE, {"quantize.scheme": ["int8", "int4"], "prune_channels.target.macs": [0.25, 0.75]})
    found = grid.settings()
    assert [setting.name for setting in found] == [
        f"scheme={scheme}, macs={share}" for scheme in ("int8", "int4") for share in (0.25, 0.75)
    ]
    assert found[1].recipe == {
        "passes": ["canonicalize", {"prune_channels": {"target": {"macs": 0.75}}}, {"quantize": {"scheme": "int8"}}]
    }
    assert found[1].options == {"quantize.scheme": "int8", "prune_channels.target.macs": "0.75"}
    check(found, data=True)


def test_the_recipe_given_stays_as_it_was() -> None:
    before = repr(RECIPE)
    laid_over(RECIPE, "prune_channels.target.macs", 0.1)
    laid_over(RECIPE, "quantize", None)
    assert repr(RECIPE) == before


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("canonicalize.keep_training", True, {"canonicalize": {"keep_training": True}}),
        ("canonicalize", True, "canonicalize"),
        ("canonicalize", {"growth": 3}, {"canonicalize": {"growth": 3}}),
    ],
)
def test_an_option_is_laid_over_a_pass(option: str, value: Any, expected: Any) -> None:
    assert laid_over(RECIPE, option, value)["passes"][0] == expected


@pytest.mark.parametrize("nothing", [None, False])
def test_a_pass_is_left_out(nothing: Any) -> None:
    assert len(laid_over(RECIPE, "canonicalize", nothing)["passes"]) == 2
    grid = Grid(RECIPE, [{"quantize": nothing, "quantize.scheme": "int4"}])
    assert len(grid.settings()[0].recipe["passes"]) == 2  # type: ignore[index]  # a recipe


def test_the_second_pass_of_a_name_is_numbered() -> None:
    twice = {"passes": ["canonicalize", "canonicalize"]}
    found = laid_over(twice, "canonicalize#2.growth", 5)
    assert found["passes"] == ["canonicalize", {"canonicalize": {"growth": 5}}]
    with pytest.raises(RecipeError, match="canonicalize#1"):
        laid_over(twice, "canonicalize.growth", 5)
    with pytest.raises(RecipeError, match="no canonicalize#3"):
        laid_over(twice, "canonicalize#3.growth", 5)


@pytest.mark.parametrize(
    ("tries", "said"),
    [
        (Grid("int7", {}), "int8"),
        (Grid(RECIPE, {"quantise.scheme": ["int8"]}), "quantize"),
        (Grid(RECIPE, {"quantize.scheme": "int8"}), "not values to try"),
        (Grid(RECIPE, {"quantize.scheme": []}), "not values to try"),
        (Grid(RECIPE, []), "something to try"),
        (Grid(RECIPE, ["int8"]), "not a try"),  # type: ignore[list-item]  # what a file may hold
        (Grid(RECIPE, [{"quantize": 5}]), "whole pass"),
        (Grid({"steps": []}, {}), "not a recipe"),
        ([], "something to try"),
        ("int8", "not a sweep"),
        ([42], "not a try"),
        ([["canonicalize"]], "not a list of passes"),
        ([[]], "not a list of passes"),
    ],
)
def test_what_is_no_sweep_says_why(tries: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        settings_of(tries)


@pytest.mark.parametrize("values", [{"quantize.scheme": ["int9"]}, {"quantize.shceme": ["int8"]}])
def test_a_wrong_option_is_found_before_anything_runs(values: dict[str, Any]) -> None:
    with pytest.raises(TersorError, match=r"int8|scheme"):
        check(settings_of(Grid(RECIPE, values)), data=True)


def test_lists_and_mappings_of_recipes_and_passes() -> None:
    found = settings_of(["int8", "float", RECIPE, [ts.FoldBatchNorm()], ts.Canonicalize(), "int8"])
    names = [setting.name for setting in found]
    assert names == ["int8 (1)", "float", "recipe", "fold_batch_norm", "canonicalize", "int8 (2)"]
    named = settings_of({"plain": "float", "mine": [ts.FoldBatchNorm()]})
    assert [setting.name for setting in named] == ["plain", "mine"]


def test_values_in_words() -> None:
    assert value_text({"macs": 0.5, "deep": {"n_m": [2, 4]}}) == "macs 0.5, deep n_m 2 4"
    assert [value_text(value) for value in (None, True, False, 1, 0, 1.0)] == ["none", "yes", "no", "1", "0", "1.0"]


def test_fingerprints_tell_apart_what_differs() -> None:
    import torch

    zeros = torch.zeros(3)
    values: list[Any] = [1, 1.0, True, "1", None, [1], (1, [1]), {"a": 1}, {"a": 2}, {1, 2}, len, repr]
    values += [zeros, zeros.double(), zeros + 1, zeros[:, None], torch.zeros(1, 3, dtype=torch.bfloat16)]
    values += [ts.FoldBatchNorm(), ts.Channels(0.5), ts.Channels(0.25)]
    prints = [fingerprint(value) for value in values]
    assert len(set(prints)) == len(values)
    assert prints == [fingerprint(value) for value in values]


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: int8", "what to try"),
        ("grid: {quantize.scheme: [int8]}", "what to try"),
        ("recipe: int8\ngrid: {}\nrecipes: [int8]", "what to try"),
        ("recipe: int8\ngird: {}", "grid"),
        ("recipe: int8\ngrid: {}\nlatency: 'yes'", "latency"),
        ("recipe: int8\ngrid: {}\nbetter: more", "higher"),
        ("[1]", "is no sweep"),
        ("a: [", "malformed"),
    ],
)
def test_a_wrong_file_says_why(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_sweep(path).tries  # noqa: B018  # a property that checks


def test_a_file_gives_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "recipe: int8\ngrid: {quantize.scheme: [int8, int4]}\nlatency: true\ncosts: [bytes]\nbetter: lower\n"
    )
    found = load_sweep(path)
    assert len(settings_of(found.tries)) == 2
    assert (found.latency, found.costs, found.better.value) == (True, ("bytes",), "lower")
    with pytest.raises(RecipeError, match=r"\.yaml"):
        load_sweep("int8")
