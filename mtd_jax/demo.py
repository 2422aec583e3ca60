"""`python main.py`: the whole story on synthetic talking faces, from pixels on disk to an accuracy table.

Synthesise a corpus → read it back as LRS2 → train a teacher → train one student twice, alone and with MTD →
measure all three on speakers none of them has seen → find the offset of a video whose sound was shifted, mend it.
"""

import time

import numpy as np
from etils import epath

from mtd_jax.accuracy_table import print_table
from mtd_jax.checkpoint import load_model
from mtd_jax.config import load_config
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.data.corpus import synthesize
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.synthetic import portrait, record
from mtd_jax.evaluate import evaluate, write_json
from mtd_jax.infer import detect_offset
from mtd_jax.media.remux import shift_audio
from mtd_jax.media.write import write_mp4
from mtd_jax.model import count_parameters
from mtd_jax.plots import draw_demo
from mtd_jax.train import train
from mtd_jax.verdict import words

LABELS = {"teacher": "teacher", "student_plain": "student, plain", "student_mtd": "student, MTD"}
_CORPUS = {"train_clips": 200, "val_clips": 12, "test_clips": 24, "seconds": 4.0}
_SHIFTED_SPEAKER, _SHIFTED_SECONDS = 100_000, 6.0  # a speaker of no list
_OFFSETS = (-9, -7, -5, -4, 4, 5, 7, 9)  # frames; which one follows from the seed


def demo(workdir, seed: int = 0) -> dict:
    """Runs everything in `workdir`, or goes on there, and returns what it writes to summary.json."""
    started = time.monotonic()
    workdir = epath.Path(workdir)
    say(1, f"synthesising talking faces into {workdir / 'corpus'}")
    corpus = synthesize(workdir / "corpus", seed=seed, **_CORPUS)
    test_clips = Lrs2Source(corpus, "test", min_frames=6)

    models, summary, results = {}, {}, {}
    for number, variant in enumerate(LABELS, start=2):
        config = load_config("demo", variant)
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

    say(6, "measuring a video whose sound was shifted, and mending it")
    path, true_offset = shifted_video(workdir, seed)
    track = detect_offset(models["student_mtd"], path).speaker_track
    shift_audio(path, workdir / "fixed.mp4", track.offset_seconds)
    fixed = detect_offset(models["student_mtd"], workdir / "fixed.mp4").speaker_track
    summary["shifted_clip"] = {
        "true_offset": true_offset,
        "measured_offset": track.offset_frames,
        "confidence": track.confidence,
        "offset_after_fix": fixed.offset_frames,
    }
    summary["total_seconds"] = round(time.monotonic() - started, 1)

    draw_demo(workdir / "demo.png", track.scores, summary, LABELS)
    write_json(workdir / "summary.json", summary)
    tell(summary, workdir)
    return summary


def shifted_video(workdir, seed: int):
    """Writes WORKDIR/shifted.mp4; returns its path and the true offset in frames (positive = early)."""
    true_offset = int(np.random.default_rng([seed, _SHIFTED_SPEAKER]).choice(_OFFSETS))
    recording = record(seed, _SHIFTED_SPEAKER, 0, _SHIFTED_SECONDS)
    frames, _ = portrait(recording)
    path = workdir / "shifted.mp4"
    write_mp4(path, frames, recording.waveform, audio_delay_samples=-SAMPLES_PER_FRAME * true_offset)
    return path, true_offset


def say(number: int, line: str):
    print(f"[{number}/6] {line}", flush=True)


def tell(summary: dict, workdir):
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
    print(f"Shifted video: {words(shifted['true_offset'])}; measured: {words(shifted['measured_offset'])}.")
    print(f"Its copy with the sound moved back: {words(shifted['offset_after_fix'])}.")
    print(
        f"{summary['total_seconds'] / 60:.1f} minutes. "
        f"Picture: {workdir / 'demo.png'}  Numbers: {workdir / 'summary.json'}"
    )
