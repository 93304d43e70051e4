"""Names of passes and targets: known ones, what was meant by others, other packages', nothing imported early."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tersor.ir.errors import MissingDependencyError, RecipeError
from tersor.ir.registry import Registry

MODULE = """
from test_registry import Animal
class Cat(Animal): pass
class Rock: pass
"""


class Animal:
    """What is registered here."""


class Dog(Animal):
    """Built in."""


def registry(**builtin: str) -> Registry[Animal]:
    return Registry("animal", Animal, {"dog": f"{__name__}:Dog", **builtin}, "tersor.test_animals")


def install(folder: Path, package: str, module: str, **entries: str) -> None:
    """A package with entry points, as pip would leave it."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {where}\n" for name, where in entries.items())
    (info / "entry_points.txt").write_text(f"[tersor.test_animals]\n{lines}")
    (folder / f"{package}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    return tmp_path


def test_built_in_names() -> None:
    assert registry().names() == ["dog"]
    assert registry().find("dog") is Dog


@pytest.mark.parametrize(("name", "hint"), [("dgo", "did you mean 'dog'?"), ("DOGS", None), ("elephant", None)])
def test_an_unknown_name_says_what_was_meant(name: str, hint: str | None) -> None:
    with pytest.raises(RecipeError, match=f"there is no animal '{name}'") as caught:
        registry().find(name)
    assert caught.value.expected == "one of dog"
    assert caught.value.hint == hint


def test_another_package_is_known_by_name_and_imported_when_asked_for(site: Path) -> None:
    install(site, "cats_for_tersor", MODULE, cat="cats_for_tersor:Cat", kitten="cats_for_tersor:Cat")
    animals = registry()
    assert animals.names() == ["cat", "dog", "kitten"]
    animals.find("dog")
    assert "cats_for_tersor" not in sys.modules
    assert issubclass(animals.find("cat"), Animal)
    assert animals.find("cat").__name__ == "Cat"
    del sys.modules["cats_for_tersor"]


def test_two_packages_of_one_name_are_refused(site: Path) -> None:
    install(site, "first_cats", MODULE, cat="first_cats:Cat")
    install(site, "second_cats", MODULE, cat="second_cats:Cat")
    for ask in (registry().names, lambda: registry().find("cat")):
        with pytest.raises(RecipeError, match="two packages name a animal 'cat'") as caught:
            ask()
        assert {"first_cats:Cat", "second_cats:Cat"} == set(str(caught.value.found).split(" and "))


def test_a_package_cannot_take_a_built_in_name(site: Path) -> None:
    install(site, "other_dogs", MODULE, dog="other_dogs:Cat")
    with pytest.raises(RecipeError, match="'dog'"):
        registry().names()
    assert registry().find("dog") is Dog


def test_entries_that_are_not_what_they_should_be(site: Path) -> None:
    install(site, "rocks", MODULE, rock="rocks:Rock", ghost="rocks:Ghost", lost="no_such_module:Cat")
    animals = registry()
    with pytest.raises(RecipeError, match="rocks:Rock is not a animal"):
        animals.find("rock")
    with pytest.raises(RecipeError, match="'ghost' does not exist"):
        animals.find("ghost")
    with pytest.raises(MissingDependencyError, match="no_such_module"):
        animals.find("lost")
    del sys.modules["rocks"]
