"""Stored scores of a teacher teach as the teacher itself does; those of other draws are refused."""

import json

import numpy as np
import pytest

from mtd_jax.checkpoint import load_model, save_model
from mtd_jax.data.stored_scores import StoredScores
from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.training.store_scores import store_scores
from mtd_jax.training.train import train
from tests.helpers.configs import SMALL, small_config


def quiet(line):
    pass


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    """A student that learns from grids, with altered clips, and its teacher."""
    teacher = tmp_path_factory.mktemp("teacher") / "model"
    model = SyncModel(ModelConfig(**SMALL | {"widths": (4, 4, 8, 8, 16)}), seed=3)
    model.classifier.kernel[...] *= 1000  # logits as far apart as those of a trained one, for float16
    save_model(teacher, model)
    config = small_config(corpus, name="listwise")
    config.teacher = str(teacher)
    config.data.pairing, config.data.windows = "grid", 3
    config.data.augment.gain = (1.0, -6.0, 6.0)
    config.optimizer.learning_rate = 1e-6  # so that differences of rounding do not grow
    return config


@pytest.fixture(scope="module")
def scores(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "scores"
    with pytest.raises(UserError, match="config.loss.name: expected one of kd, listwise, dist, got features"):
        store_scores(from_loss(config, "features"), folder, report=quiet)
    store_scores(config, folder, report=quiet)
    said = []
    store_scores(config, folder, report=said.append)
    assert said == [f"nothing to do: {folder} has the scores of all {config.epochs} epochs"]
    return folder


def from_loss(config, name):
    config = config.copy_and_resolve_references()
    config.loss.name = name
    return config


def from_scores(config, scores):
    config = config.copy_and_resolve_references()
    config.teacher, config.teacher_scores = "", str(scores)
    return config


def test_stored_scores_teach_as_the_teacher(config, scores, tmp_path):
    assert sorted(path.name for path in scores.iterdir()) == [
        "epoch-0000.array_record",
        "epoch-0001.array_record",
        "scores.json",
    ]
    logged = []
    for name, one in (("live", config), ("stored", from_scores(config, scores))):
        train(one, tmp_path / name, report=quiet)
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        logged.append([[row["listwise"], row["total"]] for row in rows if "total" in row])
    np.testing.assert_allclose(logged[0], logged[1], rtol=1e-2)  # float16
    assert np.ptp(logged[0], axis=0).min() > 1e-2  # which any mistake in their order would exceed
    assert load_model(tmp_path / "stored").config == load_model(tmp_path / "live").config


def test_a_rerun_makes_what_is_missing_and_no_more(config, scores):
    files = sorted(scores.glob("*.array_record"))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    files[1].unlink()
    with pytest.raises(UserError, match="epoch-0001.array_record is missing; run --mode=store_scores again"):
        StoredScores(scores)
    store_scores(config, scores, report=quiet)
    assert files[1].read_bytes() == before[1][0]
    assert files[0].stat().st_mtime_ns == before[0][1]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("seed", 1, r"expected scores of this run's draws, with seed 1, got 0"),
        ("epochs", 3, "expected 12 draws, got 8; store them again with as many epochs"),
        (
            "loss.name",
            "contrastive",
            r"config.loss.name: expected with scores kd, listwise, dist, got contrastive",
        ),
        ("teacher", "DIR", "config.teacher: expected nothing beside config.teacher_scores, got DIR"),
    ],
)
def test_scores_that_do_not_fit_are_refused(config, scores, tmp_path, field, value, message):
    config = from_scores(config, scores)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path, report=quiet)


def test_other_scores_do_not_go_into_the_same_folder(config, scores, tmp_path):
    other = config.copy_and_resolve_references()
    other.seed = 1
    with pytest.raises(UserError, match="holds scores that differ in draws; name another folder"):
        store_scores(other, scores, report=quiet)
    other.teacher = ""
    with pytest.raises(UserError, match="needs --config.teacher"):
        store_scores(other, tmp_path, report=quiet)
    with pytest.raises(UserError, match="expected stored scores, from --mode=store_scores"):
        train(from_scores(config, tmp_path / "nowhere"), tmp_path / "run", report=quiet)
