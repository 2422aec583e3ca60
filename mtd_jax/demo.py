"""`python main.py`: the whole story on synthetic talking faces, from pixels on disk to an accuracy table.

Synthesise a corpus → read it back as LRS2 → train a teacher → train one student twice, alone and with MTD →
evaluate all three on unseen speakers → measure a video with shifted audio, and fix it.
The included model measures it, too.
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mtd_jax.config import load_config
from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.evaluation.evaluate import evaluate, print_table, write_json
from mtd_jax.models import load_model, shown
from mtd_jax.network.model import count_parameters
from mtd_jax.storage import path_of
from mtd_jax.sync.detect import detect_offset
from mtd_jax.sync.fix import shift_audio
from mtd_jax.sync.report import draw_demo
from mtd_jax.sync.verdict import two_digits, words
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.synthetic.corpus import synthesize
from mtd_jax.training.train import train
from mtd_jax.video.write import write_mp4

LABELS = {"teacher": "teacher", "student_plain": "student, plain", "student_mtd": "student, MTD"}
_SHIFTED_SPEAKER = 100_000  # on no list
_OFFSETS = (-9, -7, -5, -4, 4, 5, 7, 9)  # frames; which one follows from the seed


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything the demo makes; the defaults are those of `python main.py`.

    Attributes:
      train_clips, val_clips, test_clips, seconds: of the corpus, see `synthesize`.
      video_seconds: length of the video that is measured and fixed.
      changes: of config fields, for all three trainings, by dotted name: {"model.num_layers": 1}.
    """

    train_clips: int = 200
    val_clips: int = 12
    test_clips: int = 24
    seconds: float = 4.0
    video_seconds: float = 6.0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def demo(workdir: str | os.PathLike, seed: int = 0, size: Size | None = None) -> dict[str, Any]:
    """Runs everything in `workdir`, or resumes there, and returns what it writes to summary.json."""
    size = size or Size()
    started = time.monotonic()
    workdir = path_of(workdir)
    say(1, f"synthesising talking faces into {workdir / 'corpus'}")
    corpus = synthesize(
        workdir / "corpus",
        seed=seed,
        train_clips=size.train_clips,
        val_clips=size.val_clips,
        test_clips=size.test_clips,
        seconds=size.seconds,
    )
    test_clips = Lrs2Source(corpus, "test", min_frames=6)

    models, summary, results = {}, {}, {}
    for number, variant in enumerate(LABELS, start=2):
        config = load_config("demo", variant)
        config.update_from_flattened_dict(size.changes)
        config.seed = seed
        config.data.root = str(corpus)
        config.teacher = str(workdir / "teacher") if config.loss.name == "mtd" else ""
        say(number, f"training: {LABELS[variant]} (validation: pairs of unseen speakers)")
        trained = train(config, workdir / variant, report=lambda line: print(f"      {line}", flush=True))
        models[variant] = load_model(workdir / variant)
        summary[variant] = {
            "params": count_parameters(models[variant]),
            "train_seconds": round(trained["train_seconds"], 1),
        }

    say(5, f"evaluating on the {len(test_clips)} clips of unseen speakers")
    for variant, model in models.items():
        results[variant] = evaluate(model, test_clips)
        summary[variant]["accuracy"] = results[variant]["accuracy"]

    say(6, "measuring a video with shifted audio, and fixing it")
    path, true_offset = shifted_video(workdir, seed, size.video_seconds)
    found = detect_offset(models["student_mtd"], path, thorough=True)
    shift_audio(path, workdir / "fixed.mp4", found.offset_seconds)
    fixed = detect_offset(models["student_mtd"], workdir / "fixed.mp4")
    boxed = detect_offset(load_model(), path, thorough=True)
    summary["shifted_clip"] = {
        "true_offset": true_offset,
        "measured_offset": found.offset_frames,
        "confidence": found.confidence,
        "offset_after_fix": fixed.offset_frames,
        "model_in_the_box": {
            "name": shown(None),
            "measured_offset": boxed.offset_frames,
            "confidence": boxed.confidence,
        },
    }
    summary["total_seconds"] = round(time.monotonic() - started, 1)

    draw_demo(workdir / "demo.png", found.speaker_track.scores, summary, LABELS)
    write_json(workdir / "summary.json", summary)
    print_summary(summary, workdir)
    return summary


def shifted_video(workdir: epath.Path, seed: int, seconds: float) -> tuple[epath.Path, int]:
    """Writes WORKDIR/shifted.mp4; returns its path and the true offset in frames (positive = early)."""
    true_offset = int(np.random.default_rng([seed, _SHIFTED_SPEAKER]).choice(_OFFSETS))
    recording = record(seed, _SHIFTED_SPEAKER, 0, seconds)
    frames, _ = portrait(recording)
    path = workdir / "shifted.mp4"
    write_mp4(path, frames, recording.waveform, audio_delay_samples=-SAMPLES_PER_FRAME * true_offset)
    return path, true_offset


def say(number: int, line: str) -> None:
    print(f"[{number}/6] {line}", flush=True)


def print_summary(summary: dict[str, Any], workdir: epath.Path) -> None:
    """Prints the table and the verdicts."""
    rows = {LABELS[v]: (summary[v]["params"] / 1e6, summary[v]["accuracy"]) for v in LABELS}
    print_table(rows, published=False)
    plain, mtd = (summary[v]["accuracy"] for v in ("student_plain", "student_mtd"))
    gains = {k: 100 * (mtd[k] - plain[k]) for k in ("5", "15")}
    verdict = "beats" if min(gains.values()) > 0 else "does NOT beat"
    print(
        f"MTD {verdict} plain training of the same student for the same steps: "
        f"K5 {gains['5']:+.1f}, K15 {gains['15']:+.1f} points (one run each; seeds differ by several)."
    )
    shifted = summary["shifted_clip"]
    truth, measured, fixed = (
        words(shifted[name] / FPS) for name in ("true_offset", "measured_offset", "offset_after_fix")
    )
    print(f"Shifted video: {truth}; measured: {measured}.")
    boxed = shifted["model_in_the_box"]
    sure = f"confidence {two_digits(boxed['confidence'])}"
    print(f"Measured again by {boxed['name']}: {words(boxed['measured_offset'] / FPS)}, {sure}.")
    print(f"After the fix: {fixed}.")
    print(
        f"{summary['total_seconds'] / 60:.1f} minutes. "
        f"Figure: {workdir / 'demo.png'}  Numbers: {workdir / 'summary.json'}"
    )
