"""What several verbs share: exit codes and options."""

from __future__ import annotations

import click

CHECK_FAILED, USAGE, ERROR, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
dynamic_option = click.option(
    "--dynamic", multiple=True, metavar="INPUT:DIM=NAME", help="A dimension that changes, as x:0=batch. Repeatable."
)
