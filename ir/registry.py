"""Names for passes and targets: a literal table of ours, entry points of other packages, nothing imported early."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from .errors import MissingDependencyError, RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Looks a class up by name, importing its module only then.

    kind: what is registered, in the words of an error. base: the class that every entry derives from.
    builtin: name -> `module:Class`. group: the entry-point group that other packages use.
    """

    kind: str
    base: type[T]
    builtin: Mapping[str, str]
    group: str

    def names(self) -> list[str]:
        """Every name that is known, without importing anything. Raises RecipeError where two packages give one."""
        return sorted({*self.builtin, *self._installed()})

    def find(self, name: str) -> type[T]:
        """The class of that name.

        Raises RecipeError on an unknown name, with the nearest one, or where the entry does not exist or is no `base`;
        MissingDependencyError where its module needs a package that is absent.
        """
        entry = self._builtin(name) if name in self.builtin else self._installed().get(name)
        if entry is None:
            raise unknown(self.kind, name, self.names())
        return self._load(entry)

    def resolve(self, where: str) -> type[T]:
        """The class of a name, or that of `module:Class`. Raises what `find` raises.

        Only for what a person says: a file that chose what is imported could run any code.
        """
        return self._load(EntryPoint(where, where, self.group)) if ":" in where else self.find(where)

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            found = entry.load()
        except ImportError as error:
            what = f"{self.kind} {entry.name!r} cannot be loaded: {error}"
            raise MissingDependencyError(what, found=entry.value) from error
        except AttributeError as error:
            raise RecipeError(f"{self.kind} {entry.name!r} does not exist: {error}", found=entry.value) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise RecipeError(f"{entry.value} is not a {self.kind}", expected=f"a subclass of {self.base.__name__}")
        return found

    def _builtin(self, name: str) -> EntryPoint:
        return EntryPoint(name, self.builtin[name], self.group)

    def _installed(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            other = found.get(entry.name)
            if entry.name in self.builtin or (other is not None and other.value != entry.value):
                raise RecipeError(
                    f"two packages name a {self.kind} {entry.name!r}",
                    found=f"{self.builtin.get(entry.name) or (other.value if other else '')} and {entry.value}",
                    hint="uninstall one of them",
                )
            found[entry.name] = entry
        return found


def unknown(kind: str, name: str, known: list[str]) -> RecipeError:
    """The error for a name that is not known: it says what was probably meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else None
    return RecipeError(f"there is no {kind} {name!r}", expected=f"one of {', '.join(known)}", hint=hint)
