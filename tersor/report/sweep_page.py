"""The page of a sweep: its front as a plot, and every try with its figures."""

from __future__ import annotations

from tersor.passes.report import decibels
from tersor.passes.training.options import Better

from ..sweeps.table import Sweep
from .figures import numbered
from .markup import Markup, tag
from .page import Section, Table, page, words
from .points import points_body


def sweep_page(found: Sweep) -> str:
    """The file."""
    definition = found.definition
    title = f"{definition.name}: a sweep of {len(definition.points)} tries"
    failed = sum(bool(row.error) for row in found.rows)
    facts = [f"{len(found.front)} on the Pareto front"]
    facts += [f"{failed} failed"] if failed else []
    facts += [f"{found.pending} not finished"] if found.pending else []
    lead = " · ".join([definition.started.replace("T", " "), *facts])
    points = [row.point(False, "") for row in found.rows]
    better, said, quality = Better.HIGHER, dict[int, str](), found.quality_name
    if definition.metric is None:
        points = [
            type(point)(**{**vars(point), "metric": row.sqnr}) for point, row in zip(points, found.rows, strict=True)
        ]
        said = {place: decibels(point.metric) for place, point in enumerate(points, start=1)}
        quality = "SQNR, dB"
    else:
        better = definition.metric.better
    sections = [Section("tries", "What was tried", points_body(points, quality, better, definition.costs, said))]
    options = _options(found)
    if options is not None:
        sections.append(Section("options", "Options", [options]))
    about = {**definition.settings, **definition.machine, **definition.versions}
    about |= {"target": definition.target} if definition.target else {}
    sections.append(Section("run", "The run", [words(about)]))
    return page(title, [tag("h1", title), tag("p", lead, class_="lead")], sections)


def _options(found: Sweep) -> Markup | None:
    """What sets each try apart, a column an option; None where tries have no options."""
    names = list(dict.fromkeys(option for row in found.rows for option in row.options))
    if not names:
        return None
    headings = [("try", "name"), *((name, "text") for name in names)]
    rows = [
        [numbered(place, row.name), *(row.options.get(name, "") for name in names)]
        for place, row in enumerate(found.rows, start=1)
    ]
    return Table("What sets each try apart", headings, rows).markup()
