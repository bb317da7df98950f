"""Reports are made from config.yaml and metrics.jsonl alone, and say which of them is wrong."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmezo.config import flatten
from fedmezo.errors import RunError
from fedmezo.results.metrics import MetricsFile, measured
from fedmezo.results.report import Run, compare, labels_of, read_run, write_report

CONFIG: dict[str, Any] = {
    "outdir": "runs",
    "federate": {"protocol": "scalars", "client_num": 3},
    "train": {"optimizer": {"type": "SGD", "lr": 1e-5}},
    "trainer": {"type": "mezotrainer"},
    "data": {"splitter_args": [{"alpha": 0.5}]},
    "eval": {"best_res_update_round_wise_key": "test_loss"},
}


def make_run(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    sink = MetricsFile(folder)
    sink.write(
        [
            measured("val_loss", 2.5, round_index=0),
            measured("test_loss", 2.6, round_index=0),
            measured("train_loss", 2.4, round_index=1, client=0),
            measured("bytes_up", 67, round_index=1),
            measured("bytes_down", 210, round_index=1),
            measured("val_loss", 2.0, round_index=1),
            measured("test_loss", 2.7, round_index=1),
        ]
    )
    sink.close()
    return folder


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return CONFIG | {name: CONFIG.get(name, {}) | section for name, section in sections.items()}


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_a_report_is_a_picture_and_a_page_that_needs_no_other_file(tmp_path: Path) -> None:
    picture, page = write_report(make_run(tmp_path / "a<b"))
    html = page.read_text(encoding="utf-8")
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert base64.b64decode(embedded) == picture.read_bytes()
    assert "<title>Run a&lt;b</title>" in html
    assert '<meta name="viewport" content="width=device-width' in html  # a phone draws it as wide as its screen
    assert html.count("<table>") == html.count('<div class="wide"><table>')  # where a table scrolls, not the page
    assert not re.search(r'(src|href)="(http|/)', html)
    rows = cells(html)
    assert ["validation loss", "2.5000 -&gt; 2.0000", "-20.0 %"] in rows
    assert ["best round", "0", "test loss 2.6000"] in rows
    assert ["bytes up", "67 B", ""] in rows
    assert ["federate.protocol", "scalars"] in rows
    assert ["data.splitter_args", "[{alpha: 0.5}]"] in rows


def test_the_page_links_the_files_that_are_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "adapter").mkdir()
    html = write_report(run)[1].read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]+)"', html) == ["config.yaml", "metrics.jsonl", "adapter", "report.png"]


def test_a_report_can_be_made_again_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = [path.read_bytes() for path in write_report(run)]
    assert [path.read_bytes() for path in write_report(run)] == first
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html", "report.png"]


def test_a_comparison_tells_runs_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", changed(federate={"protocol": "weights"}))]
    table = compare(runs, tmp_path / "out")
    assert table.headings == ("run", "rounds", "validation loss", "test loss", "best round", "bytes up", "bytes down")
    assert table.rows[1] == (
        "protocol=weights",
        "1",
        "2.5000 -> 2.0000",
        "2.6000 -> 2.7000",
        "0",
        "67 B",
        "210 B",
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.html", "comparison.png"]
    rows = cells((tmp_path / "out" / "comparison.html").read_text(encoding="utf-8"))
    assert rows[0] == list(table.headings)
    assert rows[1][:3] == ["protocol=scalars", "1", "2.5000 -&gt; 2.0000"]


def labels(*configs: dict[str, Any]) -> list[str]:
    return labels_of([Run(Path(f"run-{index}"), config, []) for index, config in enumerate(configs)])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (changed(trainer={"type": "llmtrainer"}), ["trainer.type=mezotrainer", "trainer.type=llmtrainer"]),
        (changed(federate={"client_num": 7}), ["client_num=3", "client_num=7"]),
        (changed(train={"zo": {"eps": 0.01}}), ["eps=-", "eps=0.01"]),
        (
            changed(train={"optimizer": {"type": "Adam", "lr": 1e-5}}, trainer={"type": "llmtrainer"}),
            ["optimizer.type=SGD, trainer.type=mezotrainer", "optimizer.type=Adam, trainer.type=llmtrainer"],
        ),
        (CONFIG | {"outdir": "elsewhere", "expname": "x"}, ["run-0", "run-1"]),
    ],
)
def test_labels(other: dict[str, Any], expected: list[str]) -> None:
    assert labels(CONFIG, other) == expected


def test_runs_that_share_a_label_are_told_apart_by_name() -> None:
    assert labels(CONFIG, CONFIG, changed(federate={"client_num": 7})) == [
        "run-0 (client_num=3)",
        "run-1 (client_num=3)",
        "run-2 (client_num=7)",
    ]


def test_flatten_keeps_the_order_and_empty_sections() -> None:
    assert list(flatten({"b": {"y": 1, "x": {}}, "a": [1]}).items()) == [("b.y", 1), ("b.x", {}), ("a", [1])]


def test_a_run_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        read_run(tmp_path / "nothing")
    assert str(error.value) == f"{tmp_path}/nothing: no such run directory"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, "no such file; is {run} the directory of a run that has started?"),
        ("metrics.jsonl", "", "no metrics yet; report the run after its first evaluation"),
        ("config.yaml", None, "no such file; is {run} a run directory?"),
        ("config.yaml", "", "holds no setting; the file is damaged"),
        ("config.yaml", "- a\n", "1: got ['a'] at the top level; needs keys with values, as in 'key: value'"),
    ],
)
def test_what_is_missing_or_empty_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(RunError) as error:
        write_report(run)
    assert str(error.value).replace(":1: ", ": 1: ") == f"{run / name}: {message.format(run=run)}"
    assert not (run / "report.png").exists()


def test_damaged_files_are_named_with_their_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("damage\n")
    with pytest.raises(RunError, match=r"metrics.jsonl, line 8: not a JSON object"):
        read_run(run)
    run = make_run(tmp_path / "other")
    (run / "config.yaml").write_text("a: [1\n")
    with pytest.raises(RunError, match=r"config.yaml:2: not valid YAML: expected ',' or '\]'"):
        read_run(run)
