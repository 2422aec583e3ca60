"""How often verdicts are right, on synthetic films of speakers that no training has seen.

Every kind of film is made anew from a seed: in sync, shifted, cut into short shots of one or two speakers, noisy,
short, with music, with another voice, with an offset beyond the range, edited, or with a drifting clock. Each goes
through `detect_offset` as a file: decoding, face detector, crops, network, verdict.

    python -m benchmarks.verdicts --checkpoint=workdir/student_mtd --each=6 --picture=docs/reliability.png
    python -m benchmarks.verdicts --checkpoint=workdir/student_mtd --each=6 --thorough   # sampled against thorough
"""

import dataclasses
import functools
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
from mtd_jax.data.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from mtd_jax.faces.detect import load_detector
from mtd_jax.scoring import Scorer
from mtd_jax.storage import check_writable
from mtd_jax.sync.detect import detect_offset
from mtd_jax.sync.evidence import TOLERANCE
from mtd_jax.sync.verdict import CONFIDENT, Result
from mtd_jax.synthetic.clips import portrait, record, shift_audio
from mtd_jax.video.write import delay, write_mp4

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory.", required=True)
EACH = flags.DEFINE_integer("each", 8, "Films of each kind.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Everything random follows from it.")
KINDS = flags.DEFINE_list("kinds", None, "Kinds of films to make. [all]")
THOROUGH = flags.DEFINE_bool("thorough", False, "Measure each film --thorough, too, and compare.")
PICTURE = flags.DEFINE_string("picture", None, "PNG file to write the reliability diagram to.")

FIRST_SPEAKER = 200_000  # in no corpus
SECONDS = 6.0


@dataclasses.dataclass(frozen=True)
class Film:
    """Frames and sound.

    Attributes:
      truth: offset in frames; None where no offset in the range is right; "changes" where it is not constant.
      truth_seconds: of an offset between frames.
    """

    frames: np.ndarray
    sound: np.ndarray
    truth: int | str | None
    truth_seconds: float | None = None


def main():
    compilation.prepare()
    if PICTURE.value:
        check_writable(PICTURE.value)
    scorer, detector = Scorer(load_model(CHECKPOINT.value)), load_detector("mtcnn")
    kinds = KINDS.value or list(MAKERS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(kind, number) for kind in kinds for number in range(EACH.value)]
        for kind, number in track(jobs, "measuring", console=Console(stderr=True)):
            path = Path(folder, "film.mp4")
            rng = np.random.default_rng([SEED.value, list(MAKERS).index(kind), number])
            film = MAKERS[kind](rng)
            write_mp4(path, film.frames, film.sound)
            found = detect_offset(scorer, path, faces=detector)
            row = {"kind": kind, "number": number, "truth": film.truth} | outcome(found)
            seconds = film.truth / FPS if isinstance(film.truth, int) else None
            row["truth_seconds"] = seconds if film.truth_seconds is None else film.truth_seconds
            if THOROUGH.value:
                row["thorough"] = outcome(detect_offset(scorer, path, faces=detector, thorough=True))
            rows.append(row)
    print_table(rows)
    print(
        json.dumps(
            {"benchmark": "verdicts", "machine": machine(), "versions": versions("jax", "av"), "films": rows}
        )
    )
    if PICTURE.value:
        draw(PICTURE.value, rows)


def outcome(found: Result) -> dict:
    return {
        "verdict": found.verdict,
        "offset": found.offset_frames,
        "offset_seconds": found.offset_seconds,
        "confidence": found.confidence,
    }


def right(row: dict) -> bool:
    """Whether the offset is right within a frame."""
    return isinstance(row["truth"], int) and abs(row["offset"] - row["truth"]) <= TOLERANCE


def is_sure(row: dict) -> bool:
    return row["verdict"] in ("in_sync", "out_of_sync")


def print_table(rows: list[dict]):
    """Verdicts by kind, and how many of the sure ones are right."""
    verdicts = ("in_sync", "out_of_sync", "drifting", "unknown")
    table = Table("kind", *verdicts, "sure", "of them right", "right at all")
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        chosen = [row for row in rows if kind in (row["kind"], "all")]
        sure = [row for row in chosen if is_sure(row)]
        counts = [str(sum(row["verdict"] == verdict for row in chosen)) for verdict in verdicts]
        table.add_row(kind, *counts, str(len(sure)), str(sum(map(right, sure))), str(sum(map(right, chosen))))
    Console(width=130).print(table)
    errors = [abs(row["offset_seconds"] - row["truth_seconds"]) for row in rows if is_sure(row) and right(row)]
    print(
        f"error of the offsets that are right: {1e3 * np.mean(errors or [np.nan]):.1f} ms on average, "
        f"at most {1e3 * max(errors, default=np.nan):.1f} ms"
    )
    compared = [row for row in rows if "thorough" in row]
    if compared:
        same = [
            row["verdict"] == row["thorough"]["verdict"]
            and (row["verdict"] in ("unknown", "drifting") or row["offset"] == row["thorough"]["offset"])
            for row in compared
        ]
        print(f"sampled and thorough agree on {sum(same)} of {len(same)} films")


def draw(path: str, rows: list[dict]):
    """Share of right offsets over confidence, and how many films lie there."""
    edges = np.array([0, 0.2, 0.4, 0.6, 0.8, CONFIDENT, 0.99, 0.999, 1.0001])
    places = [np.digitize(row["confidence"], edges) - 1 for row in rows if row["verdict"] != "drifting"]
    rows = [row for row in rows if row["verdict"] != "drifting"]
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(6.5, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    labels = [f"{a:g}–{min(b, 1):g}" for a, b in zip(edges, edges[1:], strict=False)]
    share = [
        np.mean([right(r) for r, p in zip(rows, places, strict=True) if p == i] or [np.nan])
        for i in range(len(labels))
    ]
    upper.bar(labels, [100 * s for s in share], color=["tab:gray"] * 5 + ["tab:blue"] * 3)
    upper.axhline(97, color="tab:red", linewidth=1, linestyle="--", label="97 %")
    upper.set(ylabel="right within ±1 frame (%)", ylim=(0, 102), title="Of the films with this confidence")
    upper.legend(loc="lower right")
    lower.bar(labels, [places.count(i) for i in range(len(labels))], color="tab:gray")
    lower.tick_params(axis="x", labelsize=8)
    lower.set(ylabel="films", xlabel="confidence (0.9 and more: the verdict is sure)")
    figure.savefig(path, dpi=110)


def talk(rng: np.random.Generator, seconds: float = SECONDS) -> tuple[np.ndarray, np.ndarray]:
    """A new speaker: frames and sound."""
    recording = record(int(rng.integers(1 << 30)), FIRST_SPEAKER, 0, seconds)
    return portrait(recording)[0], recording.waveform


def any_offset(rng: np.random.Generator, low: int = 2, high: int = 12) -> int:
    return int(rng.choice([-1, 1]) * rng.integers(low, high + 1))


def in_sync(rng: np.random.Generator) -> Film:
    return Film(*talk(rng), 0)


def shifted(rng: np.random.Generator, seconds: float = SECONDS) -> Film:
    (frames, sound), offset = talk(rng, seconds), any_offset(rng)
    return Film(frames, shift_audio(sound, offset), offset)


def between_frames(rng: np.random.Generator) -> Film:
    """Late or early by a multiple of 5 ms, up to a frame."""
    (frames, sound), seconds = talk(rng), 0.005 * int(rng.integers(-8, 9))
    return Film(frames, delay(sound, -round(SAMPLE_RATE * seconds)), round(seconds * FPS), seconds)


def noisy(rng: np.random.Generator) -> Film:
    film = shifted(rng)
    level = np.sqrt(np.mean(np.square(film.sound.astype(float)))) * 10 ** (-rng.uniform(0, 12) / 20)
    return dataclasses.replace(film, sound=mix(film.sound, level * rng.standard_normal(len(film.sound))))


def other_voice(rng: np.random.Generator) -> Film:
    return Film(talk(rng)[0], talk(rng)[1], None)


def music(rng: np.random.Generator) -> Film:
    frames, sound = talk(rng)
    return Film(frames, mix(np.zeros_like(sound), 6000 * chords(rng, len(sound))), None)


def music_under_speech(rng: np.random.Generator) -> Film:
    film = shifted(rng)
    level = np.sqrt(np.mean(np.square(film.sound.astype(float)))) * 10 ** (-rng.uniform(3, 12) / 20)
    return dataclasses.replace(film, sound=mix(film.sound, level * chords(rng, len(film.sound))))


def beyond_the_range(rng: np.random.Generator) -> Film:
    (frames, sound), offset = talk(rng), any_offset(rng, 20, 40)
    return Film(frames, shift_audio(sound, offset), None)


def edited(rng: np.random.Generator) -> Film:
    """The offset jumps in the middle of 14 s."""
    frames, sound = talk(rng, 14.0)
    before, after, middle = 0, any_offset(rng, 4, 12), len(sound) // 2
    return Film(
        frames,
        np.concatenate([shift_audio(sound, before)[:middle], shift_audio(sound, after)[middle:]]),
        "changes",
    )


def long_film(rng: np.random.Generator, changes: bool = False) -> Film:
    """Two minutes: a talk of 20 s, six times. With `changes` the offset jumps somewhere between 40 and 80 s."""
    (frames, sound), offset = talk(rng, 20.0), any_offset(rng)
    sound = np.tile(sound, 6)
    moved = shift_audio(sound, offset)
    if changes:
        place = SAMPLES_PER_FRAME * int(rng.integers(1000, 2000))
        moved = np.concatenate([shift_audio(sound, -offset)[:place], moved[place:]])
    return Film(np.tile(frames, (6, 1, 1, 1)), moved, "changes" if changes else offset)


def drifting(rng: np.random.Generator) -> Film:
    """The sound runs fast or slow by 2 %: 7 frames in 14 s."""
    frames, sound = talk(rng, 14.0)
    rate = 1 + float(rng.choice([-1, 1])) * 0.02
    times = np.arange(len(sound)) * rate
    return Film(frames, np.interp(times, np.arange(len(sound)), sound, right=0).astype(np.int16), "changes")


def cut(shot_seconds: float, speakers: int):
    """Films of short shots, each seen larger or mirrored; with two speakers by turns."""

    def make(rng: np.random.Generator) -> Film:
        talks, length = [talk(rng) for _ in range(speakers)], round(shot_seconds * FPS)
        frames, sound = np.empty_like(talks[0][0]), np.empty_like(talks[0][1])
        for number, start in enumerate(range(0, len(frames), length)):
            of, part = talks[number % speakers], slice(start, start + length)
            shot = of[0][part]
            if number % 2:
                shot = shot[:, 30:226, 30:226].repeat(2, axis=1).repeat(2, axis=2)[:, :256, 68:324]
                shot = np.ascontiguousarray(255 - (255 - shot[:, :, ::-1]) // 4 * 3)
            frames[part] = shot
            part = slice(SAMPLES_PER_FRAME * start, SAMPLES_PER_FRAME * (start + length))
            sound[part] = of[1][part]
        offset = any_offset(rng, 2, 15)
        return Film(frames, shift_audio(sound, offset), offset)

    return make


def chords(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Sustained chords of a few harmonics, of RMS 1."""
    time, total = np.arange(samples) / SAMPLE_RATE, np.zeros(samples)
    beat = rng.uniform(0.4, 0.8)
    for start in np.arange(0, time[-1], beat):
        for note in 220 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12], 3, replace=False) / 12):
            here = time - start
            shape = np.where((here >= 0) & (here < beat), np.minimum(here / 0.03, 1) * np.exp(-here), 0)
            total += sum(shape * np.sin(2 * np.pi * note * k * time) / k for k in (1, 2, 3, 4))
    return total / np.sqrt(np.mean(np.square(total)))


def mix(sound: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.clip(sound + other, -32768, 32767).astype(np.int16)


MAKERS = {
    "in sync": in_sync,
    "shifted": shifted,
    "between frames": between_frames,
    "1 s": lambda rng: shifted(rng, 1.0),
    "2 s": lambda rng: shifted(rng, 2.0),
    "3 s": lambda rng: shifted(rng, 3.0),
    "shots of 1 s": cut(1.0, 1),
    "shots of 1.5 s": cut(1.5, 1),
    "shots of 2 s": cut(2.0, 1),
    "shots of 3 s": cut(3.0, 1),
    "shots of 1 s by two": cut(1.0, 2),
    "shots of 1.5 s by two": cut(1.5, 2),
    "shots of 2 s by two": cut(2.0, 2),
    "noise": noisy,
    "music under speech": music_under_speech,
    "another voice": other_voice,
    "music alone": music,
    "beyond the range": beyond_the_range,
    "edited": edited,
    "2 minutes": long_film,
    "2 minutes edited": functools.partial(long_film, changes=True),
    "drifting": drifting,
}


if __name__ == "__main__":
    run_benchmark(main)
