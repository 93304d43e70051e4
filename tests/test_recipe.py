"""Recipes: what they read as, and what an error says."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tersor as ts
from tersor.ir.errors import RecipeError
from tersor.ir.quantization import SCHEMES, Observer, Scheme
from tersor.passes.base import Pass
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm
from tersor.recipe import READY, build_passes, convert, load_recipe, ready_recipes

YAML = """
name: mine
description: a test
passes:
  - canonicalize
  - fold_batch_norm:
  - quantize: {scheme: int8_symmetric, observer: percentile, percentile: 99, skip: [head, stem]}
"""
TOML = """
name = "mine"
passes = [
    "canonicalize",
    {fold_batch_norm = {}},
    {quantize = {scheme = "int8_symmetric", observer = "percentile", percentile = 99, skip = ["head", "stem"]}},
]
"""
PASSES = [
    Canonicalize(),
    FoldBatchNorm(),
    Quantize(SCHEMES["int8_symmetric"], observer=Observer.PERCENTILE, percentile=99.0, skip=("head", "stem")),
]


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML)])
def test_a_file_reads_as_its_passes(tmp_path: Path, name: str, text: str) -> None:
    passes = load_recipe(write(tmp_path, text, name))
    assert passes == PASSES
    assert isinstance(passes[2], Quantize)
    assert type(passes[2].percentile) is float


def test_ready_made_recipes() -> None:
    assert {"float", "int8"} <= set(ready_recipes())
    for name in ready_recipes():
        passes: list[Pass] = load_recipe(name, teacher=nn.Identity())
        assert passes
        assert "description" in (READY / f"{name}.yaml").read_text(encoding="utf-8")
    assert load_recipe("int8") == [Quantize()]


def test_data_goes_to_the_passes_that_take_it() -> None:
    batches: list[Any] = [object()]
    canonicalize, calibrate, quantize = build_passes({"passes": ["canonicalize", "calibrate", "quantize"]}, batches)
    assert canonicalize == Canonicalize()
    assert isinstance(calibrate, Calibrate)
    assert calibrate.batches is batches
    assert isinstance(quantize, Quantize)
    assert quantize.calibration is batches


@pytest.mark.parametrize(
    ("recipe", "words", "hint"),
    [
        ("passes: [quantise]", r"pass 1, line 1, column 10: there is no pass 'quantise'", "did you mean 'quantize'?"),
        (
            "passes: [canonicalize, {quantize: {sceme: int8}}]",
            r"option of quantize \(.*pass 2, line 1, column \d+\) 'sceme'",
            "'scheme'?",
        ),
        ("passes: [{quantize: {scheme: int9}}]", r"scheme \(.*quantize.scheme\) 'int9'", "int"),
        ("passes: [{quantize: {observer: msee}}]", r"Observer \(.*observer\) 'msee'", "did you mean 'mse'?"),
        ("passes: [{quantize: {percentile: high}}]", r"quantize.percentile: wrong type", None),
        ("passes: [{quantize: {percentile: true}}]", r"quantize.percentile: wrong type", None),
        ("passes: [{quantize: {pair_safe: 1}}]", r"quantize.pair_safe: wrong type", None),
        ("passes: [{quantize: {skip: [1]}}]", r"quantize.skip: wrong type", None),
        ("passes: [{quantize: {calibration: file.npz}}]", r"option of quantize .* 'calibration'", None),
        ("passes: [{quantize: 8}]", r"pass 1, line 1, column 10: not a pass", None),
        ("passes: [{quantize: {}, canonicalize: {}}]", r"pass 1, line 1, column 10: not a pass", None),
        ("passes: [8]", r"pass 1, line 1, column 10: not a pass", None),
        ("passes: quantize", r"not a recipe", None),
        ("", r"not a recipe", None),
        ("- quantize", r"not a recipe", None),
        ("passes: []\nsteps: []", r"entry of a recipe .* 'steps'", None),
        ("passes: [", r"mine.yaml is malformed", None),
        ("passes:\n- quantize:\n    scheme: int8\n    skip: 3", r"pass 1, line 4, column 5, quantize.skip", None),
        ("passes: !!python/object/apply:os.getcwd []", r"is malformed", None),
    ],
)
def test_an_error_says_where_what_and_what_was_meant(tmp_path: Path, recipe: str, words: str, hint: str | None) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(write(tmp_path, recipe))
    assert "mine.yaml" in str(caught.value)
    assert (hint or "") in str(caught.value.hint)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="malformed"):
        load_recipe(write(tmp_path, "passes = [", "broken.toml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="malformed"):
        load_recipe(binary)
    with pytest.raises(RecipeError, match="there is no recipe 'int9'") as caught:
        load_recipe("int9")
    assert "int8" in str(caught.value.hint)


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Target:
    keep: float
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError("keep is between 0 and 1")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        ("1e-3", float, 1e-3),
        (3, int, 3),
        ("a", str, "a"),
        (None, int | None, None),
        (3, int | None, 3),
        ("x", int | str, "x"),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ("a", tuple[str, ...], ("a",)),
        ([[1], [2, 3]], tuple[tuple[int, ...], ...], ((1,), (2, 3))),
        ("red", Colour, Colour.RED),
        ("int8", Scheme, SCHEMES["int8"]),
        ({"keep": 1, "layers": ["a"]}, Target, Target(1.0, ("a",))),
    ],
)
def test_values_become_what_the_field_declares(value: Any, hint: Any, expected: Any) -> None:
    found = convert(value, hint, "here")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (1.5, int, "wrong type"),
        (True, int, "wrong type"),
        (None, int, "wrong type"),
        (1.5, int | str, "wrong type"),
        ("blue", Colour, "'blue'"),
        ({"kep": 1}, Target, "'kep'"),
        ({"keep": 2}, Target, "between 0 and 1"),
        ({}, Target, "keep"),
        ({"keep": "most"}, Target, r"here\.keep: wrong type"),
        ("x", Any, "cannot be given in a recipe"),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        convert(value, hint, "here")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("passes:\n  - quantize: {observer: mse, observer: entropy}\n")
    with pytest.raises(RecipeError, match="given twice"):
        load_recipe(path)


def test_targets_criteria_and_patterns_go_by_name() -> None:
    recipe = {
        "passes": [
            {"prune_channels": {"target": {"macs": 0.5}, "criterion": {"magnitude": {"norm": 1}}, "kinds": ["heads"]}},
            {"sparsify": {"pattern": {"n_m": {"n": 1, "m": 4}}, "criterion": "weight_magnitude"}},
        ]
    }
    prune, sparsify = build_passes(recipe)
    assert prune == ts.PruneChannels(ts.Macs(0.5), ts.Magnitude(1), kinds=(ts.Kind.HEADS,))
    assert sparsify == ts.Sparsify(ts.NM(1, 4), ts.WeightMagnitude())
    with pytest.raises(ts.TersorError, match="did you mean 'macs'"):
        build_passes({"passes": [{"prune_channels": {"target": {"mac": 0.5}}}]})
    with pytest.raises(ts.TersorError, match="share that is left"):
        build_passes({"passes": [{"prune_channels": {"target": {"macs": 2.0}}}]})
