"""The command line as a user meets it: one line per mistake, no traceback; synthesise → train → evaluate."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from mtd_jax import cli
from mtd_jax.checkpoint import save_model
from mtd_jax.cli import MODES, run
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.errors import exit_code
from mtd_jax.network.model import SyncModel
from tests.helpers.cli import ROOT, TINY, run_main
from tests.helpers.configs import STUDENT
from tests.helpers.videos import mux, noise, numbered


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--workdir=x"], "expected only flags"),
        (
            ["--mode=train", "--config=configs/teacher.py", "--workdir=/dev/null/x", "--config.data.root=/"],
            "pretrain",
        ),
        (
            ["--mode=evaluate", "--config=configs/teacher.py", "--checkpoint=README.md", "--config.data.root=/"],
            "a file",
        ),
        (["--mode=evaluate", "--config=configs/teacher.py", "--checkpoint=x"], "config.data.root"),
        (["--mode=fly"], "demo|train|store_scores|evaluate|infer|preprocess|synthesize"),
        (["--colour=red"], "Unknown command line flag"),
        (["--mode=train"], "needs --config"),
        (["--mode=train", "--video=x.mp4"], "--video belongs to --mode=infer"),
        (["--mode=infer", "--checkpoint=x", "--video=x", "--boxes=x", "--faces=whole"], "exclude each other"),
        (["--mode=synthesize"], "needs --output"),
        (["--mode=synthesize", "--output=/dev/null"], "/dev/null"),
        (["--mode=train", "--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
        (["--mode=train", "--config=configs/demo.py:nobody", "--workdir=x"], "student_plain"),
        (["--mode=train", "--config=configs/teacher.py", "--config.depth=3", "--workdir=x"], "depth"),
        (["--mode=train", "--config=configs/teacher.py", "--config.epochs=many", "--workdir=x"], "many"),
        (["--mode=train", "--config=configs/teacher.py", "--workdir=x"], "config.data.root"),
        (["--mode=infer", "--checkpoint=/nowhere"], "needs --video"),
        (["--mode=infer", "--video=/nothing.mp4"], "no such file"),
        (["--mode=infer", "--checkpoint=/nowhere", "--video=/nothing.mp4"], "/nothing.mp4: no such file"),
        (["--mode=preprocess", "--videos=/nothing"], "needs --output"),
        (["--mode=preprocess", "--videos=/nothing", "--output=x"], "/nothing: no such file"),
        (["--mode=preprocess", "--videos=tests", "--output=x", "--list_name=a/b"], "--list_name"),
        (["--mode=evaluate", "--config=configs/teacher.py", "--checkpoint=/no", "--config.data.root=/"], "/no"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run(["main.py", *arguments]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not (ROOT / "x").exists()


def test_a_mistake_in_a_process_of_its_own():
    result = run_main("--mode=infer", "--checkpoint=/nowhere", "--video=/nothing.mp4")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: /nothing.mp4: no such file\n"


def test_help_lists_the_modes_and_the_flags_of_one(capsys):
    assert run(["main.py", "--help"]) == 0
    everything = capsys.readouterr().out
    assert all(f"--mode={mode}" in everything for mode in MODES)
    assert run(["main.py", "--mode=infer", "--help"]) == 0
    of_infer = capsys.readouterr().out
    assert "--video" in of_infer and "--seconds" not in of_infer


def test_configs_are_found_outside_the_checkout(tmp_path, monkeypatch, capsys):
    (tmp_path / "mtd_jax/configs").mkdir(parents=True)
    (tmp_path / "mtd_jax/configs/teacher.py").write_text((ROOT / "configs/teacher.py").read_text())
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "mtd_jax/cli.py"))  # as installed
    monkeypatch.chdir(tmp_path)
    assert run(["mtd-jax", "--mode=train", "--config=configs/teacher.py:tiny", "--workdir=x"]) == 1
    assert "config.data.root" in capsys.readouterr().err


def test_the_wheel_holds_every_package_under_one_name():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mtd_jax").rglob("__init__.py")}
    assert set(settings["packages"]) == found | {"mtd_jax.configs", "mtd_jax.converters"}


@pytest.mark.slow
def test_synthesise_train_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    corpus, teacher, student = tmp_path / "corpus", tmp_path / "teacher", tmp_path / "student"
    counts = ["--train_clips=4", "--val_clips=2", "--test_clips=2", "--seconds=1.2"]
    made = run_main("--mode=synthesize", f"--output={corpus}", *counts)
    assert made.returncode == 0, made.stderr
    assert len(list(corpus.glob("mp4/*/*.mp4"))) == 2
    common = [*TINY, f"--config.data.root={corpus}", "--config.data.train_list=train", "--config.batch_size=2"]
    common += ["--config.val_batch_size=2", "--config.epochs=1", "--config.log_every=1"]
    trained = run_main("--mode=train", "--config=configs/teacher.py:tiny", *common, f"--workdir={teacher}")
    assert trained.returncode == 0, trained.stderr
    assert "step 2/2" in trained.stdout and "validation" in trained.stdout
    distil = ["--mode=train", "--config=configs/distill.py:tiny", f"--config.teacher={teacher}"]
    assert run(["main.py", *distil, *common, f"--workdir={student}"]) == 0
    capsys.readouterr()
    evaluate = ["main.py", "--mode=evaluate", "--config=configs/distill.py:tiny", f"--checkpoint={student}"]
    assert run([*evaluate, *common, f"--output={tmp_path / 'result.json'}"]) == 0
    printed = capsys.readouterr().out
    assert "2 clips" in printed and "K15" in printed
    assert len(json.loads((tmp_path / "result.json").read_text())["clips"]) == 2
    included = ["main.py", "--mode=evaluate", "--config=configs/distill.py:tiny", *common]
    assert run(included) == 1 and "name a file with --output" in capsys.readouterr().err
    assert run([*included, f"--output={tmp_path / 'included.json'}"]) == 0
    assert "the included model (real_teacher" in capsys.readouterr().out


def test_bad_videos_are_one_line_each(tmp_path):
    save_model(tmp_path / "model", SyncModel(STUDENT, seed=0))
    films = tmp_path / "films"
    films.mkdir()
    (films / "empty.mp4").touch()
    (films / "text.mp4").write_text("not a video")
    mux(films / "mute.mp4", numbered(10), np.arange(10) / 25, None)
    mux(films / "faceless.mp4", numbered(10), np.arange(10) / 25, noise(0.4))
    whole = mux(tmp_path / "whole.mp4", numbered(50), np.arange(50) / 25, noise(2.0)).read_bytes()
    (films / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    infer = ["--mode=infer", f"--checkpoint={tmp_path / 'model'}"]
    result = run_main(*infer, f"--video={films}", "--json")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    errors = {
        pathlib.Path(line["video"]).stem: line["error"] for line in map(json.loads, result.stdout.splitlines())
    }
    assert errors.keys() == {"empty", "text", "mute", "faceless", "truncated"}
    expected = {"text": "not a video", "mute": "no audio stream", "faceless": "no face"}
    assert all(words in errors[name] for name, words in expected.items())
    assert "measured 0 of 5, 5 failed" in result.stderr
    alone = run_main(*infer, f"--video={films / 'mute.mp4'}")
    assert (alone.returncode, alone.stdout) == (1, "") and len(alone.stderr.splitlines()) == 1


def test_preprocess_writes_the_lists_that_training_reads(tmp_path):
    for folder, count in (("train", 3), ("val", 1)):
        for number in range(count):
            (tmp_path / folder / "s1").mkdir(parents=True, exist_ok=True)
            times = np.arange(40) / 25
            mux(tmp_path / folder / f"s1/{folder}{number}.mp4", numbered(40), times, noise(1.6))
    (tmp_path / "train/s1/broken.mp4").write_text("no video")
    options = [f"--output={tmp_path / 'ROOT'}", "--faces=whole", "--all_faces", "--workers=1"]
    made = run_main("--mode=preprocess", f"--videos={tmp_path / 'train'}", *options)
    assert made.returncode == 1 and made.stdout.startswith("3 clips of 4 videos\ns1/broken: failed: ")
    made = run_main("--mode=preprocess", f"--videos={tmp_path / 'val'}", *options, "--list_name=val")
    assert (made.returncode, made.stdout) == (0, "1 clips of 1 videos\n"), made.stderr
    for name, count in (("train", 3), ("val", 1)):
        assert len(Lrs2Source(tmp_path / "ROOT", name, min_frames=26)) == count


def test_importing_the_package_does_not_import_jax():
    code = "import sys, mtd_jax, mtd_jax.data.pipeline; print('flax' in sys.modules, 'optax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_public_names_exist():
    import mtd_jax

    assert mtd_jax.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in set(mtd_jax.__all__) - {"__version__"}:
        assert callable(getattr(mtd_jax, name)), name
    declared = re.findall(r"import (\w+) as \1", (ROOT / "mtd_jax/__init__.py").read_text())
    assert set(declared) == set(mtd_jax.__all__) - {"__version__"}  # what type checkers see is what there is
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mtd_jax.nonsense


@pytest.mark.parametrize(
    "module, message",
    [
        (
            "grain.experimental",
            "error: this needs grain, which is not installed: in a checkout, pip install '.[train]'; "
            "--mode=infer --video=FILE works without it",
        ),
        (
            "torch",
            "error: this needs torch, which is not installed: in a checkout, pip install '.[convert]'; "
            "--mode=infer --video=FILE works without it",
        ),
        ("something", "error: No module named 'something'"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(module, message, capsys):
    def work():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert exit_code(work) == 1
    assert capsys.readouterr().err == message + "\n"
