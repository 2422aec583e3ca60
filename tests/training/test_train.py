"""Training end to end on a tiny corpus: every loss, resuming, faults, evaluation, scoring."""

import json
import os
import signal

import numpy as np
import pytest

import mtd_jax
from mtd_jax.checkpoint import load_description, load_loss_weights, load_model, open_manager, save_model
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.errors import Interrupted, UserError
from mtd_jax.evaluation import evaluate as evaluate_module
from mtd_jax.evaluation.evaluate import evaluate, evaluate_list
from mtd_jax.network.model import ModelConfig
from mtd_jax.network.weights import model_arrays
from mtd_jax.training import train as train_module
from mtd_jax.training.train import train
from mtd_jax.training.workdir import taken
from tests.helpers.configs import SMALL, STUDENT, small_config


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(workdir, step):
    with open_manager(workdir / "checkpoints") as manager:
        assert step in manager.all_steps()
    return mtd_jax.checkpoint.restore_arrays(workdir / "checkpoints" / str(step), "model")


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    """A wider model, trained by plain BCE."""
    workdir = tmp_path_factory.mktemp("teacher")
    config = small_config(corpus)
    config.model.widths = (4, 4, 8, 8, 16)
    train(config, workdir, report=lambda line: None)
    return workdir


def distillation(loss, corpus, teacher):
    config = small_config(corpus, name=loss, temperature=2.0)
    config.loss.layers.fusion = (1,)
    config.teacher = str(teacher)
    return config


def test_two_towers_learn_from_transformers_and_score(corpus, teacher, tmp_path):
    """Saved, loaded and folded as any model; what compares layers refuses them."""
    config = distillation("listwise", corpus, teacher)
    config.model.fusion = "none"
    config.data.pairing, config.data.windows = "grid", 2
    train(config, tmp_path, report=lambda line: None)
    assert all(np.isfinite(row["listwise"]) for row in lines(tmp_path) if "total" in row)
    model = mtd_jax.load_model(tmp_path)
    assert model.config.fusion == "none"
    clip = Lrs2Source(corpus, "test", min_frames=6)[0]
    frames, waveform = clip.frames[: clip.num_frames], clip.waveform[: len(clip.waveform)]
    scores = mtd_jax.score_clip(model, frames, waveform)
    mel = mtd_jax.log_mel(waveform[None, : 5 * 640])[:, :-1]
    np.testing.assert_allclose(scores[0, 15], model(frames[None, :5], mel)[0], atol=0.2)  # the mel's edges differ
    for loss, message in (
        ("mtd", "model.fusion=none has none"),
        ("fitnet", "expected transformers as in the teacher"),
    ):
        config.loss.name = loss
        with pytest.raises(UserError, match=message):
            train(config, tmp_path / "other", report=lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mtd", "mtd_layers", "kd", "rkd", "fitnet", "minilm"])
def test_each_distillation_trains_evaluates_and_scores(loss, corpus, teacher, tmp_path):
    config = distillation(loss, corpus, teacher)
    before = mtd_jax.checkpoint.restore_arrays(mtd_jax.checkpoint.find_checkpoint(teacher), "model")
    result = train(config, tmp_path, report=lambda line: None)
    assert result["steps"] == 4
    logged = lines(tmp_path)
    steps = [row for row in logged if "total" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(np.isfinite(list(row.values())).all() for row in logged)
    epochs = [row for row in logged if "epoch" in row]
    assert len(epochs) == 2 and {"val_loss", "val_accuracy", "val_f1", "val_f1_reference"} <= epochs[0].keys()
    if loss == "mtd":
        uncertainty = load_loss_weights(tmp_path)
        assert uncertainty.shape == (4,) and not np.allclose(uncertainty, 1)
        assert {"attention_fusion_1", "value_va_1", "uncertainty_3", "learning_rate"} <= steps[0].keys()
    assert (tmp_path / "tensorboard").is_dir()
    # The teacher is frozen, and never written into the student's checkpoint.
    after = mtd_jax.checkpoint.restore_arrays(mtd_jax.checkpoint.find_checkpoint(teacher), "model")
    assert all((before[name] == after[name]).all() for name in before)
    model = mtd_jax.load_model(tmp_path)
    assert model.config == STUDENT
    clip = Lrs2Source(corpus, "test", min_frames=6)[0]
    scores = mtd_jax.score_clip(model, clip.frames[: clip.num_frames], clip.waveform[: len(clip.waveform)])
    assert scores.shape == (35, 31) and np.isfinite(scores).all()


@pytest.mark.parametrize("pairing", ["reference", "grid"])
def test_resumed_equals_uninterrupted_bit_for_bit(pairing, corpus, teacher, tmp_path, monkeypatch):
    config = distillation("mtd", corpus, teacher)
    if pairing == "grid":
        config.data.pairing, config.data.windows, config.data.min_gap = "grid", 3, 5
        config.loss.info_nce_weight, config.loss.balance_pairs = 1.0, True
    config.checkpoint_every = 1
    train(config, tmp_path / "whole", report=lambda line: None)

    class Killed(Exception):
        pass

    after_dispatch = train_module.Progress.after_dispatch

    def kill_at_step_4(self, step, metrics):
        after_dispatch(self, step, metrics)
        if step == 4:
            raise Killed

    monkeypatch.setattr(train_module.Progress, "after_dispatch", kill_at_step_4)
    with pytest.raises(Killed):
        train(config, tmp_path / "broken", report=lambda line: None)
    monkeypatch.undo()
    said = []
    train(config, tmp_path / "broken", report=said.append)
    assert said[0].startswith("resumed from step 3 of 4")
    whole, broken = weights(tmp_path / "whole", 4), weights(tmp_path / "broken", 4)
    assert whole.keys() == broken.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], broken[name], err_msg=name)
    np.testing.assert_array_equal(load_loss_weights(tmp_path / "whole"), load_loss_weights(tmp_path / "broken"))
    totals = [[row["total"] for row in lines(tmp_path / run) if "total" in row] for run in ("whole", "broken")]
    assert totals[0] == totals[1]


def test_a_teacher_computes_in_the_students_dtype_and_stays_as_it_was(corpus, teacher, tmp_path, monkeypatch):
    """Up to the traced step: what bfloat16 computes is tested in test_step.py and test_model.py."""
    config = small_config(corpus, name="mtd")
    config.model.compute_dtype, config.teacher = "bfloat16", str(teacher)
    loaded, runs = [], []
    load_model, compile_steps = train_module.load_model, train_module.compile_steps

    class Traced(Exception):
        pass

    def load(directory):
        loaded.append(load_model(directory))
        return loaded[-1]

    def traced(run, state, teacher_arrays):
        runs.append((run, teacher_arrays))

        def trace(*arguments):
            compile_steps(run, state, teacher_arrays)[0].eval_shape(*arguments)
            raise Traced

        return trace, trace

    monkeypatch.setattr(train_module, "load_model", load)
    monkeypatch.setattr(train_module, "compile_steps", traced)
    with pytest.raises(Traced):
        train(config, tmp_path, report=lambda line: None)
    (model,), ((run, arrays),) = loaded, runs
    assert model.config == load_model(teacher).config and model.config.compute_dtype == "float32"
    assert model.head.kernel.dtype == "float32"
    assert run.teacher.compute_dtype == "bfloat16" and arrays["head/kernel"].dtype == "bfloat16"


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(small_config(corpus), workdir, report=lambda line: None)
    return workdir


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_a_step_and_nothing_is_lost(number, code, corpus, undisturbed, tmp_path, monkeypatch):
    def send_before_step_2(self, step, metrics):
        after_dispatch(self, step, metrics)
        if step == 1:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) == before  # a second one would act as ever

    before = signal.getsignal(number)
    after_dispatch = train_module.Progress.after_dispatch
    monkeypatch.setattr(train_module.Progress, "after_dispatch", send_before_step_2)
    with pytest.raises(Interrupted, match=rf"{number.name}: saved step 1 of 4 in .*; rerun to resume$") as stop:
        train(small_config(corpus), tmp_path, report=lambda line: None)
    monkeypatch.undo()
    assert stop.value.exit_code == code
    assert signal.getsignal(number) == before
    said = []
    train(small_config(corpus), tmp_path, report=said.append)
    assert said[0].startswith("resumed from step")
    whole, broken = weights(undisturbed, 4), weights(tmp_path, 4)
    for name in whole:
        np.testing.assert_array_equal(whole[name], broken[name], err_msg=name)
    totals = [[row["total"] for row in lines(run) if "total" in row] for run in (undisturbed, tmp_path)]
    assert totals[0] == totals[1]


def test_running_again_after_the_end_changes_nothing(corpus, teacher):
    said = []
    config = small_config(corpus)
    config.model.widths = (4, 4, 8, 8, 16)
    before = (teacher / "metrics.jsonl").read_text()
    train(config, teacher, report=said.append)
    assert "nothing to do" in said[-1]
    assert (teacher / "metrics.jsonl").read_text() == before


def test_best_and_last_are_kept(corpus, tmp_path, monkeypatch):
    losses = iter([0.9, 0.2, 0.5, 0.6])

    def validation(*args):
        return {"val_loss": next(losses), "val_accuracy": 0.5}

    monkeypatch.setattr(train_module, "validate_epoch", validation)
    config = small_config(corpus)
    config.epochs = 4
    train(config, tmp_path, report=lambda line: None)
    with open_manager(tmp_path / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [4, 8]
    assert load_description(tmp_path)["step"] == 4


def test_another_configuration_is_refused_by_name(corpus, teacher):
    config = small_config(corpus)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer\.learning_rate \(was 0\.001, is 0\.5\)"):
        train(config, teacher, report=lambda line: None)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(corpus, tmp_path):
    config = small_config(corpus)
    config.optimizer.learning_rate = 1e30
    config.epochs = 4
    with pytest.raises(
        UserError, match=r"(nan|inf).* step \d+; (last checkpoint: .*|no checkpoint yet); start a new run"
    ):
        train(config, tmp_path, report=lambda line: None)


def test_a_validation_loss_that_is_not_finite_is_not_taken_for_the_best(corpus, tmp_path, monkeypatch):
    config = small_config(corpus)
    found = iter([{"val_loss": 1.0}, {"val_loss": np.nan}])
    monkeypatch.setattr(train_module, "validate_epoch", lambda *_: next(found))
    with pytest.raises(
        UserError, match=r"^validation loss nan after step 4; last checkpoint: .*/2; start a new run"
    ):
        train(config, tmp_path, report=lambda line: None)
    with open_manager(tmp_path / "checkpoints") as manager:
        assert manager.all_steps() == [2]


def test_two_runs_in_one_work_directory_are_refused(corpus, tmp_path):
    with taken(tmp_path), pytest.raises(UserError, match="another run is writing"):
        train(small_config(corpus), tmp_path, report=lambda line: None)
    with taken(tmp_path):
        pass


def test_a_checkpoint_is_no_work_directory(tmp_path):
    """`--config.teacher=DIR` would load that checkpoint, not the run's best one."""
    save_model(tmp_path / "teacher", mtd_jax.SyncModel(ModelConfig(**SMALL), seed=0))
    with pytest.raises(UserError, match="is a checkpoint already"), taken(tmp_path / "teacher"):
        pass


def test_a_work_directory_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link: a file with that name exists"), taken(tmp_path / "link"):
        pass


def test_other_clips_another_teacher_or_another_end_of_a_cosine_are_refused(corpus, teacher, tmp_path):
    config = small_config(corpus)
    config.optimizer.schedule = "cosine"
    config.epochs = 1
    train(config, tmp_path / "run", report=lambda line: None)
    config.epochs = 2
    with pytest.raises(UserError, match="epochs"):
        train(config, tmp_path / "run", report=lambda line: None)
    config.epochs = 1
    config.data.train_list = "val"
    with pytest.raises(UserError, match="clips_checksum"):
        train(config, tmp_path / "run", report=lambda line: None)


def test_a_training_starts_from_the_weights_of_another(corpus, tmp_path):
    """And resumes only with the same ones."""
    config = small_config(corpus)
    config.epochs = 1
    config.optimizer.learning_rate = 1e-12
    for name, seed in (("first", 5), ("second", 6)):
        save_model(tmp_path / name, mtd_jax.SyncModel(ModelConfig(**SMALL), seed=seed))
    save_model(tmp_path / "towers", mtd_jax.SyncModel(ModelConfig(**SMALL, fusion="none"), seed=0))
    config.init = str(tmp_path / "first")
    train(config, tmp_path / "run", report=lambda line: None)
    began, ended = (model_arrays(load_model(tmp_path / name)) for name in ("first", "run"))
    for name, array in began.items():
        if not name.endswith(("mean", "var")):
            np.testing.assert_allclose(ended[name], array, atol=1e-6, err_msg=name)
    config.epochs, config.init = 2, str(tmp_path / "second")
    with pytest.raises(UserError, match="init_checksum"):
        train(config, tmp_path / "run", report=lambda line: None)
    config.init = "box"
    with pytest.raises(UserError, match=r"config.model.widths: expected \(.* as in config.init=box"):
        train(config, tmp_path / "other", report=lambda line: None)
    for initial, fusion, theirs in (
        ("box", "none", "transformers"),
        (str(tmp_path / "towers"), "transformers", "none"),
    ):
        config.init, config.model.fusion = initial, fusion
        with pytest.raises(UserError, match=f"config.model.fusion: expected {theirs} as in config.init={initial}"):
            train(config, tmp_path / "other", report=lambda line: None)
    config.init, config.teacher, config.loss.name, config.model.num_layers = "", "box", "mtd", 3
    with pytest.raises(UserError, match="config.model.num_layers: expected 2 as in the teacher box"):
        train(config, tmp_path / "other", report=lambda line: None)


def test_checkpoints_of_the_last_version_resume(corpus, tmp_path):
    """Its configs had neither a second source, nor grids of several clips, nor all of the transforms."""
    config = small_config(corpus)
    config.epochs = 1
    train(config, tmp_path, report=lambda line: None)
    for file in (tmp_path / "checkpoints").glob("*/config/metadata"):
        described = json.loads(file.read_text())
        del described["training"]["init"], described["training"]["init_checksum"]
        data = described["training"]["data"]
        del data["extra"], data["clips_per_grid"], data["augment"]["bend"], data["augment"]["voice"]
        del described["data"]["extra"]
        file.write_text(json.dumps(described))
    config.epochs = 2
    assert train(config, tmp_path, report=lambda line: None)["steps"] > 0
    assert lines(tmp_path)[-1]["step"] == 4


def test_a_model_of_longer_windows_is_evaluated_at_longer_contexts(corpus, tmp_path):
    save_model(tmp_path / "long", mtd_jax.SyncModel(ModelConfig(**SMALL, window_frames=7), seed=0))
    evaluate_list(small_config(corpus), str(tmp_path / "long"), "test", str(tmp_path / "out.json"))
    assert list(json.loads((tmp_path / "out.json").read_text())["accuracy"]) == ["7", "9", "11", "13", "15", "17"]


def test_broken_clips_are_counted_not_fatal(corpus, tmp_path):
    config = small_config(corpus)
    config.data.train_list = str(tmp_path / "list.txt")
    names = (corpus / "train.txt").read_text().split()
    (tmp_path / "list.txt").write_text("\n".join([*names, "speaker99999/00000"]))
    train(config, tmp_path / "run", report=lambda line: None)
    assert lines(tmp_path / "run")[-1]["step"] == 4


def test_evaluation_writes_json_and_prints_the_published_rows(corpus, teacher, tmp_path, capsys):
    config = small_config(corpus)
    evaluate_list(config, str(teacher), "test", str(tmp_path / "result.json"))
    printed = capsys.readouterr().out
    assert "MTDVocaLiST (published, LRS2)" in printed and "99.68" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["skipped"] == {} and len(result["clips"]) == 3
    assert result["clips"][0]["windows"] == 35
    means = {k: np.mean([clip["accuracy"][k] for clip in result["clips"]]) for k in result["accuracy"]}
    assert result["accuracy"] == pytest.approx(means)
    assert list(result["accuracy"]) == ["5", "7", "9", "11", "13", "15"]
    assert result["compute_dtype"] == "float32"


def test_evaluation_computes_in_the_dtype_asked_for(corpus, teacher, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(evaluate_module, "evaluate", lambda model, *_, **__: used.append(model) or {}["stop"])
    config = small_config(corpus)
    for dtype in ("as_trained", "bfloat16"):
        config.evaluation.compute_dtype = dtype
        with pytest.raises(KeyError, match="stop"):
            evaluate_list(config, str(teacher), "test", str(tmp_path / "result.json"))
    assert [model.config.compute_dtype for model in used] == ["float32", "bfloat16"]
    config.evaluation.compute_dtype = "bf16"
    with pytest.raises(UserError, match="config.evaluation.compute_dtype: expected one of as_trained, float32"):
        evaluate_list(config, str(teacher), "test", str(tmp_path / "result.json"))


def test_evaluation_counts_clips_it_cannot_read(corpus, teacher, tmp_path):
    names = [line.split()[0] for line in (corpus / "test.txt").read_text().splitlines()]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        for file in (corpus / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / names[0] / "7.jpg").write_bytes(b"no picture")
    (tmp_path / names[1] / "audio.wav").unlink()
    (tmp_path / "test.txt").write_text("\n".join(names))
    result = evaluate(mtd_jax.load_model(teacher), Lrs2Source(tmp_path, "test", min_frames=6), progress=False)
    assert [clip["name"] for clip in result["clips"]] == names[2:]
    assert sum(result["skipped"].values()) == 2


def test_a_teacher_of_another_depth_is_refused(corpus, tmp_path):
    save_model(tmp_path / "deep", mtd_jax.SyncModel(ModelConfig(**(SMALL | {"num_layers": 2})), seed=0))
    config = small_config(corpus, name="mtd")
    config.teacher = str(tmp_path / "deep")
    with pytest.raises(UserError, match="num_layers: expected 2"):
        train(config, tmp_path / "run", report=lambda line: None)
