"""What a run prints: plain lines where nobody watches, a live line where somebody does, and its copy in log.txt."""

import logging
from collections.abc import Callable
from io import StringIO
from itertools import count
from pathlib import Path

import pytest
from rich.console import Console

from fedmezo.results.console import (
    RoundProgress,
    RoundStatus,
    RunLog,
    Sample,
    show_comparison,
    show_partition,
    show_samples,
    show_summary,
    work_progress,
)
from fedmezo.results.summary import Comparison, Evaluations, Summary

ESCAPE = "\x1b"


def plain_console(width: int = 80) -> Console:
    return Console(file=StringIO(), width=width, force_terminal=False, color_system=None)


def live_console(width: int = 120) -> Console:
    return Console(file=StringIO(), width=width, force_terminal=True, force_interactive=True, legacy_windows=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def lines(console: Console) -> list[str]:
    return [line.rstrip() for line in printed(console).splitlines()]


def clock() -> Callable[[], float]:
    """Seconds that pass by one at each look."""
    ticks = count()
    return lambda: float(next(ticks))


def some_rounds(progress: RoundProgress) -> None:
    with progress:
        progress.update(RoundStatus(0, val_loss=2.5, test_loss=2.6))
        progress.update(RoundStatus(1, train_loss=2.4, rate=1e-5))
        progress.update(RoundStatus(2, train_loss=2.3, val_loss=2.2, test_loss=2.3, rate=1.25e-5))
        progress.update(RoundStatus(3, train_loss=2.1, rate=1e-5))


def test_without_a_terminal_each_evaluation_and_the_end_is_a_line(tmp_path: Path) -> None:
    console = plain_console()
    with RunLog(console, tmp_path) as log:
        some_rounds(RoundProgress(log, 3, clock=clock()))
    assert [line.rpartition(" after ")[0] for line in lines(console)] == [
        "round 0/3 val 2.5000 test 2.6000",
        "round 2/3 train 2.3000 val 2.2000 test 2.3000 rate 1.25e-05",
        "round 3/3 train 2.1000 val 2.2000 test 2.3000 rate 1e-05",
    ]
    assert ESCAPE not in printed(console)


def test_on_a_terminal_there_is_one_live_line_and_the_log_has_the_evaluations(tmp_path: Path) -> None:
    console = live_console()
    with RunLog(console, tmp_path) as log:
        some_rounds(RoundProgress(log, 3))
    last = printed(console).split("\n")[-2]
    for word in ("round 3/3", "train 2.1000", "val 2.2000", "test 2.3000", "rate 1e-05", "eta"):
        assert word in last
    assert "after" not in printed(console)
    logged = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" INFO ")[1].split(" after ")[0] for line in logged] == [
        "round 0/3 val 2.5000 test 2.6000",
        "round 2/3 train 2.3000 val 2.2000 test 2.3000 rate 1.25e-05",
        "round 3/3 train 2.1000 val 2.2000 test 2.3000 rate 1e-05",
    ]


def test_the_live_line_fits_80_columns(tmp_path: Path) -> None:
    console = live_console(width=80)
    with RunLog(console, tmp_path) as log, RoundProgress(log, 60) as progress:
        progress.update(RoundStatus(60, 2.1, 2.2, 2.3, 1e-5))
    assert "round 60/60 train 2.1000 val 2.2000 test 2.3000 rate 1e-05" in printed(console)


def test_the_log_keeps_lines_and_the_packages_notices_and_takes_text_literally(tmp_path: Path) -> None:
    console = plain_console()
    with RunLog(console, tmp_path) as log:
        log.line("adapter [lora] ready: 100 %d")
        logging.getLogger("fedmezo.anything").warning("no %s here", "GPU")
        logging.getLogger("elsewhere").warning("not ours")
    logging.getLogger("fedmezo").warning("too late")
    assert lines(console) == ["adapter [lora] ready: 100 %d", "notice: no GPU here"]
    kept = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == ["INFO adapter [lora] ready: 100 %d", "WARNING no GPU here"]


def test_a_resumed_run_appends_to_its_log(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with RunLog(plain_console(), tmp_path) as log:
            log.line(text)
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]


@pytest.mark.parametrize(
    ("is_bytes", "text"), [(True, "data [1]: 2.50 MB of 2.50 MB"), (False, "data [1]: 2,500,000 of 2,500,000")]
)
def test_work_without_a_terminal_is_one_line_at_its_end(is_bytes: bool, text: str) -> None:
    console = plain_console()
    with work_progress(console, "data [1]", is_bytes=is_bytes, clock=clock()) as show:
        show(1_000_000, None)
        show(2_500_000, 2_500_000)
    (line,) = lines(console)
    assert line.startswith(f"{text}, ")
    assert ESCAPE not in line


def test_work_on_a_terminal_is_live() -> None:
    console = live_console()
    with work_progress(console, "tokenising [x]") as show:
        show(2, 4)
    assert "tokenising [x]" in printed(console)
    assert "2 of 4" in printed(console)


def test_work_on_a_terminal_leaves_its_figures_and_no_bar() -> None:
    console = live_console()
    with work_progress(console, "tokenising", clock=clock()) as show:
        show(4, 4)
    last = printed(console).rpartition(ESCAPE)[2]  # what no later code erases
    assert "tokenising: 4 of 4, " in last
    assert "eta" not in last


def test_work_that_had_nothing_to_do_leaves_nothing_on_a_terminal() -> None:
    console = live_console()
    with work_progress(console, "reading bundled"):
        pass
    assert "reading" not in printed(console).rpartition(ESCAPE)[2]


def test_the_partition_table() -> None:
    console = plain_console()
    show_partition(console, {"train": [{"a": 10, "b": 2}, {"b": 1200}], "val": [{"a": 1}, {"b": 3}]})
    assert lines(console) == [
        "Examples per client and category",
        "",
        "  part         client    a       b     all",
        " ──────────────────────────────────────────",
        "  train        0        10       2      12",
        "               1         0   1,200   1,200",
        "",
        "  validation   0         1       0       1",
        "               1         0       3       3",
        "",
    ]


def test_one_category_needs_no_column_of_its_own() -> None:
    console = plain_console()
    show_partition(console, {"train": [{"": 10}, {"": 20}]})
    assert lines(console)[2].split() == ["part", "client", "all"]


def test_many_clients_and_categories_are_summed_up() -> None:
    console = plain_console(width=95)
    show_partition(console, {"train": [{f"c{index:02d}": index + 1 for index in range(12)} for _ in range(300)]})
    table = lines(console)
    assert table[2].split() == ["part", "client", "c05", "c06", "c07", "c08", "c09", "c10", "c11", "others", "all"]
    assert table[-2].split() == [
        "280",
        "more",
        "1,680",
        "1,960",
        "2,240",
        "2,520",
        "2,800",
        "3,080",
        "3,360",
        "4,200",
        "21,840",
    ]
    assert len(table) == 1 + 3 + 21 + 1  # title, head, clients with the line of the rest, end


def test_samples_show_their_text_literally_and_shortened() -> None:
    console = plain_console(width=100)
    show_samples(console, [Sample("Say [bold]hi[/bold].", "HI", "x" * 1000, "HI")])
    text = printed(console)
    assert "[bold]hi[/bold]" in "".join(text.split())
    assert text.count("x") == 401  # and the x of "expected"
    assert ESCAPE not in text


def test_what_others_say_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    console = live_console()
    with RunLog(console, tmp_path) as log:
        log.line("client 1 cannot take part: \x1b[2Kround 5/5 val 0.0000\r")
    show_samples(console, [Sample("say", "hi", "\x1b]0;title\x07", "hi")])
    shown = printed(console)
    assert "\\x1b[2Kround" in shown
    assert "\x1b[2K" not in shown
    assert "\x1b]0" not in shown
    assert "\r" not in shown
    assert "\\x1b[2K" in (tmp_path / "log.txt").read_text()


def test_the_final_table() -> None:
    console = plain_console()
    parts = (Evaluations("val_loss", (0, 20), (2.5, 2.1)), Evaluations("test_loss", (0, 20), (2.6, 2.2)))
    show_summary(console, Summary(20, parts, 4020, 8020, 30_000_000, 3600, 612_345_678, 72.1), Path("runs/[a]"))
    assert lines(console) == [
        "Result",
        "",
        "  rounds                      20",
        "  validation loss             2.5000 -> 2.1000   -16.0 %",
        "  test loss                   2.6000 -> 2.2000   -15.4 %",
        "  best round                  20                 validation loss 2.1000",
        "  bytes up                    4.02 kB",
        "  bytes down                  8.02 kB",
        "  whole adapters would take   30.0 MB            2,492 times as much",
        "  forward passes              3,600",
        "  peak memory                 612 MB",
        "  time                        1 min 12 s",
        "",
        "Results are in runs/[a]",
    ]
    assert ESCAPE not in printed(console)


def test_the_comparison_table() -> None:
    console = plain_console()
    show_comparison(console, Comparison(("run", "rounds"), (("protocol=scalars", "20"), ("protocol=weights", "3"))))
    assert lines(console) == [
        "Comparison of runs",
        "",
        " run  rounds",
        " ───────────",
        "   1      20",
        "   2       3",
        "",
        "1: protocol=scalars",
        "2: protocol=weights",
    ]
