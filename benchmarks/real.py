"""How often verdicts on real talking faces are right, when sound, picture or crops are changed.

The videos of a folder are taken to be in sync, as those of GRID are. Each is measured through `detect_offset`, as
a file: as it is, with its audio moved, within the range and beyond it, in noise, compressed, made smaller, with
crops that are larger, smaller or beside the face, and with the audio of the others, where no verdict is right.
Without --checkpoint the included model is measured.

    python -m benchmarks.real --videos=GRID_OTHERS
    python -m benchmarks.real --videos=GRID/s1 --last=60 --kinds=shift --json=s1.json

"keep their answer" compares sure changed films with the same films as they were: the offset moves with the audio,
within a frame. Logit, distance and contrast are those of --mode=score; --thorough scores as it does.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import soundfile
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.common import machine, run_benchmark, to_json, versions
from mtd_jax import compilation
from mtd_jax.data.clip import FPS, SAMPLE_RATE
from mtd_jax.errors import UserError
from mtd_jax.faces.detect import CloseUpDetector, Mtcnn
from mtd_jax.faces.search import FindSettings
from mtd_jax.models import load_model, shown
from mtd_jax.preprocess.videos import videos_in
from mtd_jax.scoring import Scorer
from mtd_jax.storage import check_writable, write_text
from mtd_jax.sync.detect import FIND, detect_offset
from mtd_jax.sync.evidence import TOLERANCE
from mtd_jax.sync.score import clip_score
from mtd_jax.synthetic.clips import shift_audio
from mtd_jax.video.decode import read

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory. [the included model]")
VIDEOS = flags.DEFINE_string("videos", None, "Folder of videos that are in sync.", required=True)
LAST = flags.DEFINE_integer("last", None, "Take only so many, the last by name.", lower_bound=1)
KINDS = flags.DEFINE_list("kinds", None, "Kinds of changes. [all]")
THOROUGH = flags.DEFINE_bool("thorough", False, "Score every window.")
JSON = flags.DEFINE_string("json", None, "File to write all results to.")


@dataclasses.dataclass(frozen=True)
class Film:
    """What is measured.

    Attributes:
      path: of the video.
      audio: int16 (samples,).
      own_audio: measure the audio of the video itself instead.
      detector: finds the faces.
      find: how.
      truth: offset in frames; None where there is none.
      others: paths of the other videos.
    """

    path: Path
    audio: np.ndarray
    detector: CloseUpDetector
    find: FindSettings = FIND
    truth: int | None = 0
    own_audio: bool = False
    others: Sequence[Path] = ()


class Remembers:
    """A detector that looks at every picture only once."""

    def __init__(self, detector: CloseUpDetector):
        self._detector = detector
        self._known: dict[str, np.ndarray] = {}

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._remembered(self._detector.detect, frames)

    def detect_close_up(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._remembered(self._detector.detect_close_up, frames)

    def _remembered(self, detect: Callable, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        keys = [detect.__name__ + hashlib.sha1(frame.tobytes()).hexdigest() for frame in frames]
        new = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._known}
        self._known.update(zip(new, detect(list(new.values())), strict=True))
        return [self._known[key] for key in keys]


@dataclasses.dataclass(frozen=True)
class Beside:
    """A detector whose boxes lie beside the face. Attributes: across, down: as a share of the box's sides."""

    detector: CloseUpDetector
    across: float
    down: float

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._moved(boxes) for boxes in self.detector.detect(frames)]

    def detect_close_up(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._moved(boxes) for boxes in self.detector.detect_close_up(frames)]

    def _moved(self, boxes: np.ndarray) -> np.ndarray:
        sides = boxes[:, 2:4] - boxes[:, :2]
        move = sides * np.array([self.across, self.down], np.float32)
        return np.concatenate([boxes[:, :4] + np.tile(move, 2), boxes[:, 4:]], axis=1)


Change = Callable[[Film, Path, np.random.Generator], Film]


def moved(frames: int) -> Change:
    return lambda film, *_: dataclasses.replace(film, audio=shift_audio(film.audio, frames), truth=frames)


def voice(number: int) -> Change:
    def change(film: Film, *_) -> Film:
        return dataclasses.replace(film, audio=read(film.others[number % len(film.others)])[1], truth=None)

    return change


def noisy(decibels: float) -> Change:
    def change(film: Film, folder: Path, rng: np.random.Generator) -> Film:
        level = np.sqrt(np.mean(np.square(film.audio, dtype=float))) * 10 ** (-decibels / 20)
        sound = film.audio + level * rng.standard_normal(len(film.audio))
        return dataclasses.replace(film, audio=np.clip(sound, -32768, 32767).astype(np.int16))

    return change


def written_again(quality: int, smaller: int = 1) -> Change:
    """Through H.264 of this CRF, with 1/smaller of the rows and columns."""

    def change(film: Film, folder: Path, rng: np.random.Generator) -> Film:
        frames, _ = read(film.path)
        frames = frames[:, ::smaller, ::smaller]
        height, width = (size // 2 * 2 for size in frames.shape[1:3])
        path = folder / f"{film.path.stem}-{quality}-{smaller}.mp4"
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"crf": str(quality), "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return dataclasses.replace(film, path=path)

    return change


def scaled(scale: float) -> Change:
    return lambda film, *_: dataclasses.replace(film, find=dataclasses.replace(FIND, box_scale=scale))


def beside(across: float, down: float) -> Change:
    return lambda film, *_: dataclasses.replace(film, detector=Beside(film.detector, across, down))


CHANGES: dict[str, dict[str, Change]] = {
    "plain": {"as distributed": lambda film, *_: dataclasses.replace(film, own_audio=True)},
    "shift": {f"audio moved by {n:+d} frames": moved(n) for n in (-12, -6, 0, 6, 12)},
    "beyond": {f"audio moved by {n:+d} frames": moved(n) for n in (-30, -25, -20, -17, 17, 20, 25, 30)},
    "noise": {f"signal to noise {n} dB": noisy(n) for n in (20, 10, 5, 0)},
    "compression": {f"H.264, CRF {n}": written_again(n) for n in (28, 36, 44)},
    "size": {"half the pixels a side": written_again(18, 2), "a third": written_again(18, 3)},
    "scale": {f"crops {s:.0%} of the box": scaled(s) for s in (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3)},
    "beside": {
        f"crops {100 * share:+.0f} % {name}": beside(*(share * unit for unit in units))
        for name, units in (("across", (1.0, 0.0)), ("down", (0.0, 1.0)))
        for share in (-0.2, -0.1, 0.1, 0.2)
    },
    "voice": {f"the voice of another, {n + 1}": voice(n) for n in range(5)},
}


def main():
    compilation.prepare()
    if unknown := set(KINDS.value or ()) - CHANGES.keys():
        raise UserError(f"--kinds: expected some of {', '.join(CHANGES)}, got {', '.join(unknown)}")
    if JSON.value:
        check_writable(JSON.value)
    scorer = Scorer(load_model(CHECKPOINT.value))
    paths = videos_in(Path(VIDEOS.value))[-(LAST.value or 0) :]
    detector = Mtcnn()
    changes = {name: c for kind in KINDS.value or CHANGES for name, c in CHANGES[kind].items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in track(paths, "measuring", console=Console(stderr=True)):
            others = [other for other in paths if other != path]
            plain = Film(path, read(path)[1], Remembers(detector), others=others)
            before = measured(scorer, dataclasses.replace(plain, own_audio=True), Path(folder))
            for name, change in changes.items():
                rng = np.random.default_rng(len(rows))
                film = change(plain, Path(folder), rng)
                row = measured(scorer, film, Path(folder))
                row |= {"keeps": near(row["offset"], before["offset"], film.truth)}
                row |= {"right": near(row["offset"], 0, film.truth)}
                rows.append({"video": path.name, "change": name, "truth": film.truth} | row)
    print(f"{shown(CHECKPOINT.value)}, {len(paths)} videos of {VIDEOS.value}")
    print_table(rows)
    if JSON.value:
        result = {"benchmark": "real", "model": shown(CHECKPOINT.value), "machine": machine()}
        result |= {"versions": versions("jax", "av"), "thorough": THOROUGH.value, "films": rows}
        write_text(JSON.value, to_json(result, indent=1) + "\n")


def near(offset: int | None, before: int | None, truth: int | None) -> bool:
    """Whether the offset has moved by as much as the audio, from what it was before."""
    if offset is None or before is None or truth is None:
        return False
    return abs(offset - before - truth) <= TOLERANCE


def measured(scorer: Scorer, film: Film, folder: Path) -> dict:
    sound = None if film.own_audio else folder / "sound.wav"
    if sound is not None:
        soundfile.write(sound, film.audio, SAMPLE_RATE, subtype="PCM_16")
    how = {"faces": film.detector, "find": film.find, "thorough": THOROUGH.value}
    try:
        found = detect_offset(scorer, film.path, audio=sound, **how)
        score = clip_score(found)
    except UserError as error:
        return {"verdict": "failed", "offset": None, "confidence": 0.0, "why": str(error)}
    return {
        "verdict": found.verdict,
        "offset": found.offset_frames,
        "offset_seconds": round(found.offset_seconds, 4),
        "confidence": round(found.confidence, 3),
        "logit": round(score.logit, 3),
        "within_1": round(score.within_1, 3),
        "distance": round(score.distance, 3),
        "contrast": round(score.contrast, 3),
    }


def print_table(rows: list[dict]):
    """How many are right, sure, and both, by change."""
    table = Table(
        "", "films", "right ± 1", "sure", "sure and right", "keep their answer", "confidence", "contrast"
    )
    for name in [*dict.fromkeys(row["change"] for row in rows), "all"]:
        chosen = [row for row in rows if name in (row["change"], "all")]
        right = [row["right"] for row in chosen]
        sure = [row["verdict"] in ("in_sync", "out_of_sync") for row in chosen]
        table.add_row(
            name,
            str(len(chosen)),
            str(sum(right)),
            str(sum(sure)),
            str(sum(s and r for s, r in zip(sure, right, strict=True))),
            str(sum(s and row["keeps"] for s, row in zip(sure, chosen, strict=True))),
            f"{np.mean([row['confidence'] for row in chosen]):.2f}",
            f"{np.mean([row['contrast'] for row in chosen if 'contrast' in row]):.2f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    run_benchmark(main)
