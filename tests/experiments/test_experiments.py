"""The page says what the results say; a run writes them, is skipped when it is done, and repeats."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import figure, report, run, tables
from experiments.runs import RESULTS, load
from experiments.tables import ROWS, TABLES, Row, Table
from mtd_jax.config import validate
from mtd_jax.errors import UserError
from tests.helpers.configs import SMALL

TINY = Row("tiny", {f"model.{name}": value for name, value in SMALL.items()}, steps=2)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_config_that_can_run(name):
    folders = set()
    for row in TABLES[name].rows:
        config = row.config(1, 1e-3, "CORPUS", "TEACHER")
        validate(config, 1)
        assert config.epochs * config.draws_per_epoch == row.steps * config.batch_size
        assert bool(config.teacher) == row.needs_teacher
        folders.add(row.run_name(0, 1.0))
        assert "," not in row.name  # --rows=A,B
    assert len(folders) == len(TABLES[name].rows)


def test_rows_of_one_name_are_one_row():
    rows = {}
    for row in (row for table in TABLES.values() for row in table.rows):
        assert rows.setdefault(row.run_name(0, 1.0), row) == row


def test_a_row_takes_its_learning_rate_from_one_that_is_tuned():
    for table in TABLES.values():
        for row in table.rows:
            assert row.rate_of is None or (row.rate_of in table.rows and row.rate_of.rate_of is None)


def test_the_page_is_drawn_from_the_results():
    page = report.PAGE.read_text()
    assert report.filled(page, load(RESULTS), RESULTS) == page, "run python -m experiments.report"


def outcome(row, seed, rate, validation, test):
    return {
        "row": row,
        "seed": seed,
        "learning_rate": rate,
        "parameters": 400_000,
        "step_ms": 90.0,
        "validation": {"accuracy": {"5": validation}},
        "test": {"accuracy": {"5": test, "15": test}},
    }


def test_tables_by_hand(tmp_path):
    """The rate is chosen on validation, differences are paired by seed."""
    outcomes = [
        *(
            outcome("none", 0, 1e-3, 0.2, 0.9),
            outcome("none", 0, 3e-3, 0.3, 0.5),
            outcome("none", 1, 3e-3, 0.3, 0.6),
        ),
        *(outcome("MTD", 0, 3e-3, 0.5, 0.7), outcome("MTD", 1, 3e-3, 0.5, 0.7)),
    ]
    for number, one in enumerate(outcomes):
        (tmp_path / one["row"]).mkdir(exist_ok=True)
        (tmp_path / one["row"] / f"{number}.json").write_text(json.dumps(one))
    text = report.markdown(Table((Row("none"), Row("not run"), Row("MTD"))), load(tmp_path))
    assert text.splitlines()[2:] == [
        "| none | 0.40 M | 55.0 ± 7.1 | 55.0 ± 7.1 |  | 2 of 3 | 0.003 | 90 |",
        "| MTD | 0.40 M | 70.0 ± 0.0 | 70.0 ± 0.0 | +15.0 ± 7.1 | 2 of 3 | 0.003 | 90 |",
    ]


def test_a_point_of_the_figure_by_hand():
    """Minutes hold the start, and are of the run that was disturbed least."""
    runs = {
        "start": [outcome("start", 0, 1e-3, 0.2, 0.4) | {"step_ms": 100.0}],
        "MTD": [
            outcome("MTD", seed, 3e-3, 0.5, k5) | {"step_ms": ms}
            for seed, k5, ms in ((0, 0.6, 300), (1, 0.8, 200))
        ],
    }
    found = figure.point(ROWS["MTD"], runs)
    assert found["kind"] == "MTD" and found["parameters"] == 0.4
    assert found["five"] == pytest.approx(70) and found["minutes"] == pytest.approx(
        600 * 0.1 / 60 + 300 * 0.2 / 60
    )
    kinds = {"KD": "other losses", "reference pairs": "published pairs", "wider towers 4×": "two towers"}
    assert {name: figure._kind(ROWS[name]) for name in kinds} == kinds


def test_a_run_is_written_once(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "EPOCH", 2)
    flags = {"WORKDIR": tmp_path / "work", "OUTPUT": tmp_path / "results"}
    for name, path in flags.items():
        monkeypatch.setattr(run, name, type("Flag", (), {"value": str(path)}))
    first = run._run(TINY, 0, 1e-3, corpus)
    file = tmp_path / "results/tiny/0-0.001.json"
    written = json.loads(file.read_text())
    assert written == first and len(written["curve"]) == 1 and written["corpus"] == f"{run.CHECKSUM:#010x}"
    assert 0 <= written["test"]["accuracy"]["5"] <= 1 and len(written["test"]["clips"]) > 0
    assert str(tmp_path) not in file.read_text() and str(corpus) not in file.read_text()
    monkeypatch.setattr(run, "train", None)  # which would be called
    assert run._run(TINY, 0, 1e-3, corpus) == first
    file.write_text(file.read_text().replace('"num_layers": 1', '"num_layers": 2'))
    with pytest.raises(UserError, match="is of another config; remove it to run it again"):
        run._run(TINY, 0, 1e-3, corpus)
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match="got damaged JSON; remove it to run it again"):
        run._run(TINY, 0, 1e-3, corpus)
    file.rename(tmp_path / "elsewhere.json")
    (tmp_path / "known/tiny").mkdir(parents=True)
    (tmp_path / "known/tiny/0-0.001.json").write_text(json.dumps(first))
    assert run._run(TINY, 0, 1e-3, corpus, known=tmp_path / "known") == first and not file.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--table=pairs", "--part=-1/2"], "--part: expected NUMBER/OF with a number below OF"),
        (["--table=pairs", "--part=2/2"], "got 2/2"),
        (["--table=pairs", "--seeds=-1"], "--seeds: expected whole numbers, 0 or more, got -1"),
        (["--table=pairs", "--rates=fast"], "--rates: expected learning rates above 0, got fast"),
        (["--table=pairs", "--rows=none,"], "--rows: expected some of none, reference pairs, .*, got ''"),
        (["--table=grid"], "--grid: expected the folder"),
        (["--table=pairs", "--results=/proc/nowhere"], "cannot write /proc/nowhere"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_corpus_is_made(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "make", None)  # which would be called
    monkeypatch.setattr(run.compilation, "prepare", lambda: None)
    values = flags.FLAGS
    with flagsaver.flagsaver():
        values(["run", f"--workdir={tmp_path}", f"--results={tmp_path}", *arguments])
        with pytest.raises(UserError, match=message):
            run.main()
