"""The errors that tersor raises: what was wrong, where, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx


class TersorError(Exception):
    """Base of every error that tersor raises on purpose.

    The text is laid out one fact a line, so that it reads well in a terminal and in a log:

        conv2d_3: the padding is negative
          expected: padding >= 0
          found:    (-1, -1)
          node:     %conv2d_3 = aten.conv2d
          source:   net.py:41, in layer2.conv: x = self.conv(x)
          try:      pad the input before the convolution
    """

    def __init__(
        self,
        what: str,
        *,
        node: fx.Node | str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.node = getattr(node, "name", node)
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__("\n".join(self._lines(node)))

    def within(self, where: str) -> None:
        """Let the text begin with where it happened: a pass, a line of a recipe."""
        self.what = f"{where}: {self.what}"
        self.args = (f"{where}: {self}",)

    def _lines(self, node: fx.Node | str | None) -> list[str]:
        from .origin import Origin

        lines = [self.what]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.found is not None:
            lines.append(f"  found:    {self.found}")
        if isinstance(node, str):
            lines.append(f"  node:     %{node}")
        elif node is not None:
            lines.append(f"  node:     %{node.name} = {node.target}")
            origin = Origin.of(node)
            if origin is not None:
                lines.append(f"  source:   {origin}")
        if self.hint is not None:
            lines.append(f"  try:      {self.hint}")
        return lines


class DescriptionError(TersorError, ValueError):
    """A description has a value that it cannot have: the bits of a grid, the density of a pattern."""


class TraceError(TersorError):
    """A model could not be turned into a Program."""


class SignatureError(TersorError):
    """A program was called with inputs that do not fit its signature."""


class InputError(SignatureError):
    """One input tensor has another shape or dtype than its signature."""


class VerificationError(TersorError):
    """A Program breaks a rule of its stage."""


class ArchiveError(TersorError):
    """A file is not a program that this version can load."""


class PassError(TersorError):
    """A pass cannot run here, or did not keep its promise."""


class CalibrationError(TersorError):
    """Calibration data is empty, does not fit, or holds values that are not finite."""


class TrainingError(TersorError):
    """Training cannot start, cannot go on, or met values that are not finite."""


class LoweringError(TersorError):
    """A target does not take this program."""


class RecipeError(TersorError):
    """A recipe, a pass name, a target name or an option is not known or not well formed."""


class MissingDependencyError(TersorError):
    """An optional package is needed and absent; the message says what to install."""
