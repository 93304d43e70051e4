"""The command line.

Exit codes: 0 all well, 1 a check did not hold, 2 wrong usage, 3 an error, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click
from rich.console import Console

from tersor.ir.errors import RecipeError, TersorError

from .. import __version__
from .comparing import bench, verify
from .compressing import compress, plan
from .examining import analyze, show
from .listing import passes, targets
from .options import BROKEN_PIPE, ERROR, INTERRUPTED, USAGE
from .reporting import report
from .sweeping import sweep

# A verb is added here and nowhere else.
VERBS = (compress, show, verify, analyze, plan, sweep, report, bench, targets, passes)


class _Verbs(click.Group):
    """Where what reads stdout stops, as `head` does, click and rich exit with 1, which would be a failed check."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SystemExit as stop:  # rich's
            return BROKEN_PIPE if isinstance(stop.__context__, BrokenPipeError) else stop.code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            return BROKEN_PIPE


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tersor")
def cli() -> None:
    """Compress models: trace, run passes, lower to hardware, compare, measure.

    MODEL is `module:function`, whose function returns (model, inputs), an ONNX file, or a program that was saved as a
    .tersor file.
    """


for verb in VERBS:
    cli.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; never returns."""
    console = Console(stderr=True)
    if "" not in sys.path:
        sys.path.append("")  # the working directory, for a target that is named as module:Class
    try:
        code = cli.main(list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = USAGE
    except RecipeError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = USAGE
    except (TersorError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = ERROR
    except (KeyboardInterrupt, click.Abort):
        console.print("interrupted; nothing was left half-written", style="yellow")
        code = INTERRUPTED
    except Exception:  # noqa: BLE001  of the user's function or a bug of ours: 1 would say that a check did not hold
        console.print(traceback.format_exc(), style="red", markup=False, highlight=False, soft_wrap=True)
        code = ERROR
    sys.exit(code or 0)
