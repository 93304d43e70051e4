"""The claims' ledger, table and command; and each claim's machinery on the smallest models."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import per_channel, training_data_free, training_distillation, training_pruning, training_quantization
from benchmarks.__main__ import NAMES, chosen, main
from benchmarks.claims import post_training, run, table
from benchmarks.claims.claim import Claim, Figure, at_least, at_most
from benchmarks.claims.ledger import Ledger, LedgerError
from benchmarks.claims.neighbours import Work
from benchmarks.claims.workers import differences, per_seed, percents
from benchmarks.results import FOLDER
from benchmarks.trained import Trained, digits_cnn, trained

# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_figure_is_the_mean_over_its_seeds() -> None:
    figure = Figure("speed", (2.0, 4.0, 9.0), "x", at_least(5), (1.0, 1.0, 1.0), "float32")
    data = figure.to_json()
    assert (data["mean"], data["spread"], data["met"]) == (5.0, 7.0, True)
    assert data["without"] == {"name": "float32", "values": [1.0, 1.0, 1.0], "mean": 1.0}


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [(at_least(3), 3.0, True), (at_least(3), 2.99, False), (at_most(1.2), 1.2, True), (at_most(1.2), 1.3, False)],
)
def test_bounds(bound: Any, value: float, met: bool) -> None:
    assert Figure("x", (value,), "", bound).met is met


@pytest.mark.parametrize("bound", [at_least(0), at_most(0)])
def test_no_number_meets_no_bound(bound: Any) -> None:
    assert Figure("x", (math.nan,), "", bound).met is False


def test_a_figure_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a value a seed"):
        Figure("x", (), "")


def test_figures_are_compared_seed_by_seed() -> None:
    assert differences((3.0, 2.0), (1.0, 5.0)) == (2.0, -3.0)
    assert percents((1.0, 3.0), (2.0, 4.0)) == (50.0, 75.0)


# -- processes ---------------------------------------------------------------------------------------------------------


def square(seed: int, quick: bool) -> dict[str, float]:
    return {"square": float(seed**2), "threads": float(torch.get_num_threads())}


def test_seeds_keep_their_order_and_one_thread_each() -> None:
    assert per_seed((3, 1), False, square) == {"square": (9.0, 1.0), "threads": (1.0, 1.0)}


def test_a_single_seed_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    assert per_seed((2,), True, square)["square"] == (4.0,)
    assert torch.get_num_threads() == before


def test_cores_that_others_keep_busy(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    ticks = 100 * torch.tensor([3, 1, 2, 50, 9, 0, 0, 1, 0, 0]) * os.sysconf("SC_CLK_TCK") // 100
    stat.write_text(f"cpu  {' '.join(map(str, ticks.tolist()))}\ncpu0 0\n")
    found = Work.now(stat)
    assert found.machine == 7.0, "all but idle and waiting for disks"
    assert Work(10.0, 27.0, 4.0).others_since(Work(0.0, 7.0, 1.0)) == 1.7
    assert Work(10.0, 7.5, 4.0).others_since(Work(0.0, 7.0, 1.0)) == 0.0
    assert Work.now(tmp_path / "nothing").others_since(found) == 0.0


# -- the ledger --------------------------------------------------------------------------------------------------------


def entry(number: int, value: float = 1.0) -> dict[str, Any]:
    return {"number": number, "value": value}


def test_entries_are_written_as_they_come(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.begin([2, 1], fresh=False) == [2, 1]
    ledger.add(entry(2))
    assert list(ledger.entries()) == [2]
    ledger.add(entry(1))
    ledger.end()
    assert list(ledger.entries()) == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["claims.json"]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    Ledger(tmp_path).begin([1, 2, 3], fresh=False)
    Ledger(tmp_path).add(entry(1))
    assert Ledger(tmp_path).begin([1, 2, 3], fresh=False) == [2, 3]
    Ledger(tmp_path).add(entry(2))
    assert Ledger(tmp_path).begin([1, 2, 3], fresh=False) == [3]


def test_other_claims_or_a_fresh_start_are_another_run(tmp_path: Path) -> None:
    Ledger(tmp_path).begin([1, 2], fresh=False)
    Ledger(tmp_path).add(entry(1))
    assert Ledger(tmp_path).begin([1], fresh=False) == [1]
    Ledger(tmp_path).add(entry(1))
    assert Ledger(tmp_path).begin([1], fresh=True) == [1]


def test_a_finished_run_is_measured_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for value in (1.0, 2.0):
        assert ledger.begin([1], fresh=False) == [1]
        ledger.add(entry(1, value))
        ledger.end()
    assert ledger.entries()[1]["value"] == 2.0


def test_the_command_says_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "claims.json").write_text("no JSON")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks", "claims", "3"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "claims.json is not JSON" in capsys.readouterr().err


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text('{"claims": [')
    with pytest.raises(LedgerError, match=r"claims\.json is not JSON"):
        Ledger(tmp_path).entries()
    (tmp_path / "claims.json").write_text("[]")
    with pytest.raises(LedgerError, match="expected an object with a list"):
        Ledger(tmp_path).entries()


# -- a run -------------------------------------------------------------------------------------------------------------


def counted(number: int, calls: list[int], fail: bool = False) -> Claim:
    def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
        calls.append(number)
        if fail:
            raise KeyboardInterrupt
        return [Figure("what", tuple(float(seed) for seed in seeds), "x", at_least(1), note=f"quick {quick}")]

    return Claim(number, f"claim {number}", "how", "gap", 1, measure)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*given: Claim) -> None:
        found = {each.number: each for each in given}
        monkeypatch.setattr(run, "claim", lambda number: found[number])

    return install


def test_a_killed_run_keeps_what_it_measured(
    tmp_path: Path, claims: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    claims(counted(3, calls), counted(8, calls, fail=True))
    with pytest.raises(KeyboardInterrupt):
        run.run((3, 8), ledger=Ledger(tmp_path))
    assert list(Ledger(tmp_path).entries()) == [3]
    claims(counted(3, calls), counted(8, calls))
    run.run((8, 3), ledger=Ledger(tmp_path))
    assert calls == [3, 8, 8]
    assert "1 of 2 claims are done" in capsys.readouterr().out
    assert Ledger(tmp_path).entries()[8]["figures"][0]["measured"] == [0.0, 1.0, 2.0]


def test_progress_is_told_line_by_line_where_there_is_no_terminal(
    tmp_path: Path, claims: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    claims(counted(3, []), counted(8, []))
    run.run((3, 8), ledger=Ledger(tmp_path))
    told = capsys.readouterr()
    assert [line.split()[1:5] for line in told.err.splitlines()] == [
        ["claims", "0", "of", "2"],
        ["claims", "1", "of", "2"],
    ]
    assert "2 claims to measure: about 2 minutes" in told.out


def test_a_quick_run_writes_nothing(tmp_path: Path, claims: Callable[..., None]) -> None:
    claims(counted(3, []))
    run.run((3,), quick=True, ledger=Ledger(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "names", "numbers"),
    [
        (["claims"], ["claims"], []),
        (["claims", "3", "8"], ["claims"], [3, 8]),
        (["claims.3", "claims.8"], ["claims"], [3, 8]),
        (["pass_time", "claims", "9"], ["pass_time", "claims"], [9]),
        ([], list(NAMES), []),
    ],
)
def test_words_of_the_command(words: list[str], names: list[str], numbers: list[int]) -> None:
    assert chosen(words) == (names, numbers)


@pytest.mark.parametrize("words", [["3"], ["claims", "10"], ["claims.x"], ["pass_time.3"], ["nothing"]])
def test_wrong_words_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^no (benchmark|claim) "):
        chosen(words)


# -- the table ---------------------------------------------------------------------------------------------------------


def made(met: bool) -> dict[str, Any]:
    figure = Figure("lost", (1.0, 2.0), "points", at_most(2 if met else 1), (3.0, 4.0), "by chance", "a note")
    return {
        "number": 4, "claimed": "something", "how": "somehow", "gap": "something else", "met": met, "seconds": 90.0,
        "others": 0.1, "machine": {"cores": 2}, "figures": [figure.to_json()],
    }  # fmt: skip


def test_cells_say_claimed_measured_and_without() -> None:
    assert table.cells(made(True)["figures"][0]) == (
        "lost: at most 2 points", "1.5 points, spread 1 (a note)", "by chance: 3.5 points", "met",
    )  # fmt: skip


def test_a_bound_that_holds_without_the_method_is_marked() -> None:
    easy = Figure("lost", (0.5,), "points", at_most(1), (0.75,), "by chance")
    assert table.cells(easy.to_json())[3] == "met, and without it"
    missed = Figure("lost", (1.5,), "points", at_most(1), (0.75,), "by chance")
    assert table.cells(missed.to_json())[3] == "not met"


def test_only_a_claim_that_is_not_met_tells_of_its_gap() -> None:
    assert "something else" not in table.markdown([made(True)])
    assert "What would close the gap: something else" in table.markdown([made(False)])


def test_a_method_that_gains_nothing_on_a_seed_is_named() -> None:
    assert "no better" not in table.markdown([made(True)])
    figure = Figure("kept", (99.0, 98.0), "%", at_least(97), (97.5, 98.5), "by chance")
    text = table.markdown([{**made(True), "figures": [figure.to_json()]}])
    assert "On one seed or more no better than without the method: kept" in text


def test_what_is_left_of_rounding_is_zero() -> None:
    figure = Figure("lost", (9.5e-15,), "points", at_most(1))
    assert table.cells(figure.to_json())[1] == "0 points, spread 0"


def test_a_busy_machine_is_told_of() -> None:
    assert "run again" not in table.markdown([made(True)])
    assert "run again" in table.markdown([{**made(True), "others": 0.9}])


def test_the_page_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_page([made(True)], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    page.write_text("nothing\n")
    with pytest.raises(LedgerError, match="expected the lines"):
        table.write_page([made(True)], page)


def test_docs_show_the_measured_figures() -> None:
    """`python -m benchmarks claims --page` writes them."""
    text = table.PAGE.read_text(encoding="utf-8")
    shown = text[text.index(table.BEGIN) + len(table.BEGIN) : text.index(table.END)].strip()
    assert shown == table.markdown(list(Ledger(FOLDER).entries().values()))


def test_verdicts_follow_from_the_measured_values() -> None:
    for found in Ledger(FOLDER).entries().values():
        bounds = [figure for figure in found["figures"] if figure["wanted"] is not None]
        assert bounds
        for figure in bounds:
            wanted, mean = figure["wanted"], sum(figure["measured"]) / len(figure["measured"])
            assert figure["met"] == (
                mean >= wanted["value"] if wanted["side"] == "at least" else mean <= wanted["value"]
            )
        assert found["met"] == all(figure["met"] for figure in bounds)


# -- the claims --------------------------------------------------------------------------------------------------------


def test_all_nine_are_there_and_fit_in_an_hour() -> None:
    found = [run.claim(number) for number in run.NUMBERS]
    assert [each.number for each in found] == list(range(1, 10))
    assert sum(each.minutes for each in found) <= 60


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models of claims 2 to 7 that train in a second, kept apart from the real ones."""

    def tiny(seed: int, width: int = 32, **options: Any) -> Trained:
        return digits_cnn(seed, width=4, rows=64, noise=options.get("noise", 0.0))

    caches = (
        training_quantization.cnn, training_pruning.model, training_distillation.teacher, training_distillation.student,
        training_data_free.teacher, training_data_free.student, per_channel.depthwise, per_channel.residual,
    )  # fmt: skip
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    for module in (training_quantization, training_pruning, training_distillation, training_data_free, per_channel):
        monkeypatch.setattr(module, "digits_cnn", tiny)
    monkeypatch.setattr(per_channel, "digits_mobile", tiny)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def check(number: int) -> list[Figure]:
    figures = list(run.claim(number).measure((0,), True))
    assert any(figure.wanted for figure in figures)
    assert any(figure.without for figure in figures)
    assert all(math.isfinite(figure.mean) for figure in figures)
    assert all(re.search(r"\w", figure.what) and figure.unit for figure in figures)
    return figures


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 7])
def test_training_claims(number: int) -> None:
    check(number)


@pytest.mark.usefixtures("small")
def test_claim_2_is_what_the_benchmark_measures() -> None:
    """The loss is float's accuracy less that of the quantized program, both scored here."""
    model = per_channel.residual(0)
    found = post_training.one(0, True)
    assert found["ResNet-8"] == pytest.approx(100 * model.score)
    assert check(2)[0].measured[0] == pytest.approx(found["ResNet-8"] - found["ResNet-8 INT8"])


def test_claim_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    figures = check(8)
    fewer = figures[0].mean
    assert fewer > 1.5
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = check(8)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files, "trained again"
    assert again[0].measured == figures[0].measured
    assert again[3].measured == figures[3].measured, "other accuracy from the same programs"


@pytest.mark.parametrize("number", [1, 9])
def test_claims_of_latency(number: int) -> None:
    check(number)
