"""What confidences, offsets and fixed files look like on videos of speakers that no training has seen.

Films synthetic speakers to .mp4, moves their sound or gives them somebody else's, and puts every file through
`detect_offset`: decoding, face detector, crops, network, verdict. Files whose sound was shifted
are fixed (`--fix`) and measured again.

    python -m benchmarks.confidence --checkpoints=workdir/student_mtd,workdir/teacher --picture=docs/confidence.png
"""

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.common import machine, run_benchmark, versions
from mtd_jax import compilation
from mtd_jax.checkpoint import load_model
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.storage import check_writable
from mtd_jax.sync.detect import detect_offset
from mtd_jax.sync.fix import shift_audio
from mtd_jax.sync.verdict import TOLERANCE
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.video.write import write_mp4

CHECKPOINTS = flags.DEFINE_list("checkpoints", None, "Checkpoint directories.", required=True)
flags.register_validator("checkpoints", bool, "at least one")
CLIPS = flags.DEFINE_integer("clips", 24, "Speakers to film.", lower_bound=2)
SECONDS = flags.DEFINE_float("seconds", 6.0, "Length of a film.")
flags.register_validator("seconds", lambda length: 1 <= length <= 3600, "a number from 1 to 3600")
SEED = flags.DEFINE_integer("seed", 0, "Everything random follows from it.")
PICTURE = flags.DEFINE_string("picture", None, "PNG file to write the histogram to.")

FIRST_SPEAKER = 200_000  # in no corpus of these sizes
KINDS = ("in sync", "shifted by 4–9 frames", "another speaker's sound")
BINS = np.linspace(0, 1, 11)


def main():
    compilation.prepare()
    if PICTURE.value:
        check_writable(PICTURE.value)
    names = list(dict.fromkeys(CHECKPOINTS.value))
    models = [load_model(path) for path in names]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, true_offset, film in track(list(films(Path(folder))), "measuring", console=Console(stderr=True)):
            for name, model in zip(names, models, strict=True):
                rows.append(
                    {"model": name, "kind": kind, "true_offset": true_offset} | measure(model, film, true_offset)
                )
    for name in names:
        print_table(name, [row for row in rows if row["model"] == name])
    found = {"benchmark": "confidence", "machine": machine(), "versions": versions("jax", "jaxlib", "av")}
    print(json.dumps(found | {"videos": rows}))
    if PICTURE.value:
        draw(PICTURE.value, names, rows)


def films(folder: Path):
    """Yields (kind, true offset in frames or None, file) as the files get written."""
    rng = np.random.default_rng(SEED.value)
    recordings = [record(SEED.value, FIRST_SPEAKER + n, 0, SECONDS.value) for n in range(CLIPS.value)]
    for number, recording in enumerate(recordings):
        pictures, _ = portrait(recording)
        offset = int(rng.choice([-1, 1]) * rng.integers(4, 10))
        other = recordings[(number + 1) % len(recordings)].waveform
        for kind, true_offset, sound in zip(
            KINDS, (0, offset, None), (recording.waveform,) * 2 + (other,), strict=True
        ):
            path = folder / f"{number}_{KINDS.index(kind)}.mp4"
            write_mp4(path, pictures, sound, audio_delay_samples=-SAMPLES_PER_FRAME * (true_offset or 0))
            yield kind, true_offset, path


def measure(model, film: Path, true_offset: int | None) -> dict:
    """Measured offset and confidence of a film; of its fixed copy too, if its sound is known to be shifted."""
    found = detect_offset(model, film).speaker_track
    row = {"offset": found.offset_frames, "confidence": found.confidence}
    if true_offset:
        fixed = film.with_stem(f"{film.stem}_fixed")
        shift_audio(film, fixed, found.offset_seconds)
        row["offset_after_fix"] = detect_offset(model, fixed).speaker_track.offset_frames
        fixed.unlink()
    return row


def print_table(name: str, rows: list[dict]):
    """Files per tenth of confidence, and how many offsets were right within a frame, before and after the fix."""
    columns = [f"{low:.1f}–{low + 0.1:.1f}" for low in BINS[:-1]]
    table = Table(name, *columns, "right", "0 ± 1 once fixed")
    for kind in KINDS:
        chosen = [row for row in rows if row["kind"] == kind]
        counts = np.histogram([row["confidence"] for row in chosen], BINS)[0]
        known = [row for row in chosen if row["true_offset"] is not None]
        right = sum(abs(row["offset"] - row["true_offset"]) <= TOLERANCE for row in known)
        again = [abs(row["offset_after_fix"]) <= TOLERANCE for row in chosen if "offset_after_fix" in row]
        table.add_row(
            kind,
            *map(str, counts),
            f"{right} of {len(known)}" if known else "",
            f"{sum(again)} of {len(again)}" if again else "",
        )
    Console(width=150).print(table)


def draw(path: str, names: list[str], rows: list[dict]):
    """One histogram per model, the three kinds side by side."""
    figure, all_axes = plt.subplots(
        1, len(names), figsize=(5.5 * len(names), 3.6), sharey=True, layout="constrained"
    )
    for axes, name in zip(np.atleast_1d(all_axes), names, strict=True):
        values = [[r["confidence"] for r in rows if (r["model"], r["kind"]) == (name, kind)] for kind in KINDS]
        axes.hist(values, BINS, label=KINDS, color=["tab:green", "tab:blue", "tab:red"])
        axes.set(title=name, xlabel="confidence", xlim=(0, 1))
        axes.grid(alpha=0.3, axis="y")
    np.atleast_1d(all_axes)[0].set_ylabel("videos")
    np.atleast_1d(all_axes)[0].legend(fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_benchmark(main)
