"""The page: browsers read it without an error; it loads nothing, says what the record says, and escapes all names."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import html5lib
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tersor.backends.clock import Clock
from tersor.cli import cli
from tersor.ir.errors import ArchiveError
from tersor.passes.training.options import Better
from tersor.report.charts import Axis, ticks
from tersor.report.markup import Markup, escaped, tag
from tersor.report.page import POLICY
from tersor.report.run_page import run_page
from tersor.report.sweep_page import sweep_page
from tersor.report.write import write_report
from tersor.run_record import Layer, Metric, Point, RunRecord, Step, Timing
from tersor.sweeps.outcome import Definition, Folder, Outcome, Planned
from tersor.sweeps.table import Sweep

HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</td><script>alert('1')</script>\"'&amp;<img src=x onerror=alert(2)>\x00\x1f]]><!--"


def parsed(text: str) -> ElementTree.Element:
    """The page as a browser sees it; any error of the markup is one of the test."""
    found: ElementTree.Element = html5lib.HTMLParser(strict=True).parse(text)
    return found


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def section(page: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = (part for part in page.iter(f"{HTML}section") if part.get("aria-labelledby") == name)
    return found


def values(element: ElementTree.Element) -> list[float]:
    """The exact figures in it."""
    return [float(data.get("value", "")) for data in element.iter(f"{HTML}data")]


def record(**changes: Any) -> RunRecord:
    steps = (
        Step("given", parameters=1000, bytes=4000, macs=9000, metric=0.91, latency=Timing(0.002), nodes=9),
        Step(
            "prune", "approximate", {"share": "0.5"}, parameters=600, bytes=2400, macs=5000, metric=0.87, sqnr=12.5,
            sqnr_total=12.5, latency=Timing(0.0015), seconds=3.25, notes=("half of it",), nodes=9,
        ),
        Step("quantize", "approximate", parameters=600, bytes=640, macs=5000, metric=0.9, sqnr_total=11.25, nodes=30,
             latency=Timing(0.0005), seconds=0.5),
    )  # fmt: skip
    layers = (
        Layer("conv", "aten.conv2d", "features.0", 400, 3000, 2000, 6000, 31.5, 0.5, "2:4", "a8 w8", "int8"),
        Layer(
            "linear", "aten.linear", "head", 240, 2000, 2000, 3000, math.inf, 1.0, "", "float32", "float32", "too odd"
        ),
    )
    points = (
        Point("half", {"bytes": 640.0, "latency_ms": 0.5}, 0.9, chosen=True, reason="the smallest above the floor"),
        Point("quarter", {"bytes": 320.0, "latency_ms": 0.3}, 0.7, reason="below the floor"),
        Point("silly", {"bytes": 900.0, "latency_ms": 0.9}, 0.6),
        Point("broken", error="it broke"),
    )
    full = RunRecord(
        "net", target="neon", started="2026-01-02T03:04:05+00:00", seconds=12.0, versions={"torch": "2"},
        machine={"cpu": "a cpu"}, settings={"recipe": "int8"}, metric=Metric("top-1", floor=0.9), steps=steps,
        layers=layers, error_of="itself", points=points, integer_share=0.875, files={"model.onnx": 777},
        before="program net (float)\n  %a", after="program net (fake_quant)\n  %b", recipe="passes: [quantize]\n",
        notes=("nothing fell back",),
    )  # fmt: skip
    return dataclasses.replace(full, **changes)


def test_the_page_says_what_the_record_says() -> None:
    found = record()
    page = parsed(run_page(found))
    first, last = found.steps[0], found.steps[-1]
    change = values(section(page, "change"))
    assert change[:8] == [4000, 640, 1000, 600, 9000, 5000, 9, 30]
    assert change[8:12] == [0.002, 0.0005, 0.91, 0.9]
    words = text_of(section(page, "change"))
    assert "6.25 × smaller" in words
    assert "4 × faster" in words
    assert "-0.01 (floor 0.9)" in words
    rows = [values(row) for row in section(page, "steps").iter(f"{HTML}tr")][1:]
    assert rows[0] == [first.metric, 0.002, first.bytes, first.macs, first.seconds]
    assert rows[2] == [last.metric, last.sqnr_total, 0.0005, last.bytes, last.macs, last.seconds]
    layers = [values(row) for row in section(page, "layers").iter(f"{HTML}tr")][1:]
    assert layers == [[layer.bytes, layer.macs, layer.error, layer.density] for layer in found.layers]
    points = [values(row) for row in section(page, "tried").iter(f"{HTML}tr")][1:]
    assert points == [[p.metric, p.costs["bytes"], p.costs["latency_ms"]] for p in found.points[:3]] + [[]]
    assert "passes: [quantize]" in text_of(section(page, "recipe"))
    assert "program net (fake_quant)" in text_of(section(page, "graph"))
    assert {777.0} == set(values(section(page, "run")))


def test_the_front_and_what_was_chosen_are_marked() -> None:
    tried = section(parsed(run_page(record())), "tried")
    rows = [text_of(row) for row in tried.iter(f"{HTML}tr")][1:]
    assert "on the front, chosen" in rows[0]
    assert "on the front" in rows[1]
    assert "front" not in rows[2]
    assert "it broke" in rows[3]
    wide, narrow = (svg for svg in tried.iter(f"{SVG}svg") if "chart" in svg.get("class", ""))
    for svg in (wide, narrow):
        kinds = [dot.get("class") for dot in svg.iter(f"{SVG}circle")]
        assert sorted(kinds, key=str) == ["dot", "dot on", "dot on chosen", "ring"]


def hostile(value: Any) -> Any:
    """The same record with every text replaced."""
    if isinstance(value, str):
        return HOSTILE
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: hostile(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {
            f"{HOSTILE}{key}" if key not in ("bytes", "latency_ms") else key: hostile(v) for key, v in value.items()
        }
    return tuple(hostile(item) for item in value) if isinstance(value, tuple) else value


def assert_harmless(text: str) -> None:
    page = parsed(text)
    tags = {element.tag for element in page.iter()}
    assert not {f"{HTML}{name}" for name in ("script", "img", "link", "iframe", "object", "form")} & tags
    for element in page.iter():
        for name, value in element.attrib.items():
            assert not str(name).startswith("on")
            assert name not in ("src", "action", "xlink:href")
            assert name != "href" or value.startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    policy = [meta.get("content") for meta in page.iter(f"{HTML}meta") if meta.get("http-equiv")]
    assert policy == [POLICY]
    targets = {element.get("id") for element in page.iter() if element.get("id")}
    assert {a.get("href", "")[1:] for a in page.iter(f"{HTML}a")} <= targets


def test_nothing_of_a_name_becomes_markup() -> None:
    text = run_page(hostile(record()))
    assert_harmless(text)
    shown = escaped(HOSTILE)
    assert text.count(shown) > 20
    assert "<script" not in text
    assert "\x00" not in text


def test_a_page_loads_nothing() -> None:
    text = run_page(record())
    assert_harmless(text)
    assert not re.search(r"https?://|//\w", text)


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": None, "points": ()},
        {"layers": (), "recipe": "", "before": "", "after": "", "files": {}, "notes": ()},
        {"steps": ()},
        {"steps": (Step("given"),)},
        {"steps": (Step("given", metric=math.nan), Step("a", "exact", metric=math.nan, sqnr_total=math.inf))},
        {"points": (Point("a", {}, 0.5), Point("b", {"bytes": math.nan}, 0.5), Point("c", {"bytes": 1.0}, math.nan))},
        {"points": (Point("a", {"bytes": 5.0}, 0.5), Point("b", {"bytes": 5.0}, 0.5))},
        {"layers": (Layer("zero", "aten.mm"),)},
        {"metric": Metric("loss", Better.LOWER)},
    ],
)
def test_a_record_with_less_in_it_is_a_page_too(changes: dict[str, Any]) -> None:
    assert_harmless(run_page(record(**changes)))


def test_an_empty_record_is_a_page() -> None:
    assert_harmless(run_page(RunRecord("empty")))


anything = st.text(max_size=12)
number = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -0.0, 1e-300, 1e300])
steps_of_any_kind = st.builds(
    Step, anything, anything, st.dictionaries(anything, anything, max_size=2), metric=st.none() | number,
    sqnr_total=st.none() | number, bytes=st.integers(0, 10**15), latency=st.none() | st.builds(
        Timing, st.floats(0, 1e6), st.sampled_from(Clock), anything),
)  # fmt: skip
points_of_any_kind = st.builds(
    Point, anything, st.dictionaries(st.sampled_from(["bytes", "latency_ms", "odd"]), number, max_size=3),
    st.none() | number, st.booleans(), anything, error=anything,
)  # fmt: skip
layers_of_any_kind = st.builds(
    Layer, anything, anything, bytes=st.integers(0, 10**12), macs=st.integers(0, 10**15), error=st.none() | number,
    bytes_before=st.none() | st.integers(0, 10**12), density=st.none() | st.floats(0, 1), precision=anything,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(steps_of_any_kind, max_size=4),
    st.lists(points_of_any_kind, max_size=4),
    st.lists(layers_of_any_kind, max_size=4),
)
def test_any_record_is_a_page(steps: list[Step], points: list[Point], layers: list[Layer]) -> None:
    assert_harmless(run_page(record(steps=tuple(steps), points=tuple(points), layers=tuple(layers))))


def test_latencies_of_stand_ins_are_marked() -> None:
    steps = record().steps
    changed = dataclasses.replace(steps[-1], latency=Timing(0.0005, Clock.SIMULATED))
    text = text_of(parsed(run_page(record(steps=(*steps[:-1], changed)))))
    assert "0.5 ms (simulated)" in text
    assert "simulated: time of a stand-in, not of the target" in text
    assert "× faster" not in text
    assert "not the target's time" in text


def test_long_names_and_many_layers_stay_in_their_columns() -> None:
    layers = tuple(Layer(f"{'very_long_' * 20}{i}", "aten.conv2d", bytes=i, macs=i) for i in range(200))
    page = parsed(run_page(record(layers=layers)))
    rows = list(section(page, "layers").iter(f"{HTML}tr"))
    assert len(rows) == 201
    assert all("name" in str(row[0].get("class")) for row in rows[1:])
    assert {row[0].get("scope") for row in rows[1:]} == {"row"}


def test_tables_have_captions_and_charts_have_names() -> None:
    page = parsed(run_page(record()))
    assert page.get("lang") == "en"
    for table in page.iter(f"{HTML}table"):
        assert text_of(table[0])
        assert table[0].tag == f"{HTML}caption"
        assert all(th.get("scope") in ("col", "row") for th in table.iter(f"{HTML}th"))
    for svg in page.iter(f"{SVG}svg"):
        assert svg.get("role") == "img"
        assert svg.get("aria-label")
    for frame in page.iter(f"{HTML}div"):
        if frame.get("class") == "scroll":
            assert (frame.get("tabindex"), frame.get("role")) == ("0", "region")


# -- sweeps ----------------------------------------------------------------------------------------------------------


def swept(*rows: Outcome, metric: Metric | None = None) -> Sweep:
    planned = tuple(Planned(row.key, row.name) for row in rows)
    return Sweep(Definition("net", (*planned, Planned("z", "z")), ("bytes",), metric), rows)


def test_a_sweep_is_a_page_with_the_same_front() -> None:
    found = swept(
        Outcome("a", HOSTILE, {HOSTILE: HOSTILE}, {"bytes": 10.0, "macs": 5.0}, sqnr=20.0),
        Outcome("b", "b", {"x": "1"}, {"bytes": 20.0, "macs": 5.0}, sqnr=10.0),
        Outcome("c", "c", error=HOSTILE),
    )
    text = sweep_page(found)
    assert_harmless(text)
    rows = list(section(parsed(text), "tries").iter(f"{HTML}tr"))[1:]
    assert [values(row) for row in rows] == [[20.0, 10.0], [10.0, 20.0], []]
    assert ["on the front" in text_of(row) for row in rows] == [True, False, False]
    assert "1 not finished" in text_of(parsed(text))
    assert [row.key for row in found.front] == ["a"]


def test_a_sweep_of_nothing_finished_is_a_page() -> None:
    assert_harmless(sweep_page(swept()))
    assert_harmless(sweep_page(swept(Outcome("a", "a", costs={"bytes": 1.0}, metric=math.nan), metric=Metric("m"))))


# -- files -----------------------------------------------------------------------------------------------------------


def test_the_verb_writes_the_page_of_a_run_and_of_a_sweep(tmp_path: Path) -> None:
    record().save(tmp_path / "run")
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert_harmless((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    store = Folder(tmp_path / "sweep")
    with store.locked():
        store.define(swept(row := Outcome("a", "a", costs={"bytes": 1.0}, sqnr=3.0)).definition)
        store.write(row)
    out = tmp_path / "page.html"
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "sweep"), "-o", str(out), "--json"])
    assert result.exit_code == 0
    assert str(out) in result.output
    assert "a sweep of 2 tries" in out.read_text(encoding="utf-8")


def test_a_folder_without_a_run_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"holds no run\.json"):
        write_report(tmp_path)
    with pytest.raises(ArchiveError, match="there is no"):
        write_report(tmp_path / "nowhere")


def test_a_page_that_cannot_be_written_leaves_none(tmp_path: Path) -> None:
    record().save(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        write_report(tmp_path, tmp_path / "missing" / "page.html")
    (tmp_path / "full").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  # a folder where the file should stand: its text differs by system
        write_report(tmp_path, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run.json"]


# -- parts -----------------------------------------------------------------------------------------------------------


def test_markup_is_escaped_once() -> None:
    assert tag("p", "a < b & c", tag("b", "x"), [1, None], class_="n o", hidden=True, id=None) == (
        '<p class="n o" hidden="hidden">a &lt; b &amp; c<b>x</b>1</p>'
    )
    assert escaped(Markup("<b>")) == "<b>"
    assert escaped("\ud800\x00é") == "\ufffd\ufffdé"
    assert tag("a", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;"></a>'


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert found == sorted(found)
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= value <= high + slack for value in found)


def test_an_axis_is_logarithmic_where_that_helps() -> None:
    wide = Axis.around([1.0, 1000.0], 0, 100, logarithmic=True)
    assert wide.logarithmic
    assert wide.place(31.6227766) == pytest.approx(50)
    assert {1.0, 10.0, 100.0, 1000.0} <= set(wide.ticks())
    assert not Axis.around([1.0, 2.0], 0, 100, logarithmic=True).logarithmic
    assert not Axis.around([0.0, 1000.0], 0, 100, logarithmic=True).logarithmic


def test_points_are_plotted_by_what_all_that_were_judged_have() -> None:
    points = (Point("given", {"bytes": 9.0}, 0.9), Point("a", {"bytes": 5.0, "latency_ms": 1.0}, 0.8))
    tried = section(parsed(run_page(record(points=points))), "tried")
    titles = [text_of(title) for title in tried.iter(f"{SVG}title")]
    assert any("against size, bytes" in title for title in titles)
    assert sum(title.startswith("given:") for title in titles) == 2  # once wide, once narrow
