"""Writes a synthetic corpus to disk in the LRS2 layout, and its test clips as .mp4."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import simplejpeg
import soundfile

from mtd_jax.data.clip import FPS, SAMPLE_RATE
from mtd_jax.errors import UserError
from mtd_jax.storage import atomic, writing_to
from mtd_jax.synthetic.clips import clip_name, portrait, record
from mtd_jax.synthetic.render import render
from mtd_jax.synthetic.variety import AS_DESIGNED, Variety
from mtd_jax.video.write import write_mp4
from mtd_jax.workers import Crashed, run_jobs

_GENERATOR = 1  # version; increment when the same settings yield different clips, so that no old corpus is reused
_JPEG_QUALITY = 90
_SETTINGS_FILE = "corpus.json"
_IN_PROCESS_CLIPS = 16  # for fewer clips, starting worker processes takes longer than it saves


@dataclasses.dataclass(frozen=True)
class _Task:
    """One clip to write under `root`; `mp4`: also as a video file."""

    root: Path
    seed: int
    speaker: int
    index: int
    seconds: float
    mp4: bool
    variety: Variety

    @property
    def name(self) -> str:
        return clip_name(self.speaker, self.index)


def synthesize(output: str | os.PathLike, *, seed: int = 0, train_clips: int = 200, val_clips: int = 12,
               test_clips: int = 12, seconds: float = 4.0, clips_per_speaker: int = 2, mp4_clips: int = 0,
               variety: Variety = AS_DESIGNED, workers: int | None = None,
               progress: bool = True) -> Path:  # fmt: skip
    """Writes a corpus of synthetic talking faces.

    Layout (docs/method.md, section 7): `<output>/<speaker>/<clip>/{0.jpg, 1.jpg, …, audio.wav}`; `train.txt`,
    `val.txt` and `test.txt` with disjoint speakers; `corpus.json` with the settings; and for the first `mp4_clips`
    clips of the test list `mp4/<speaker>/<clip>.mp4`, with the face box in a `.json` of the same name. The folder
    appears only when it is complete.

    Args:
      output: a new or empty folder. A complete corpus with the same settings stays as it is.
      seed: determines every byte of the JPEG and WAV files.
      train_clips, val_clips, test_clips: clips per list.
      seconds: length of each clip.
      clips_per_speaker: how many clips show the same speaker.
      mp4_clips: how many test clips are also written as .mp4.
      variety: how much speakers and scenes differ.
      workers: number of processes; None = one per CPU core, or this process alone for a small corpus.
      progress: show a progress bar on stderr.

    Returns:
      The folder.

    Raises:
      UserError: impossible settings, the folder contains something else, or it cannot be written.
    """
    output = Path(output)
    counts = {"train": train_clips, "val": val_clips, "test": test_clips}
    settings: dict[str, Any] = {
        "generator": _GENERATOR,
        "seed": seed,
        **{f"{name}_clips": n for name, n in counts.items()},
        "seconds": seconds,
        "clips_per_speaker": clips_per_speaker,
        "mp4_clips": mp4_clips,
        **({"variety": variety.changes} if variety.changes else {}),
    }
    _check(counts, seed, seconds, clips_per_speaker, mp4_clips, workers)
    if _is_done(output, settings):
        return output
    target = output.resolve()
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as scratch:
        scratch.mkdir()
        lists: dict[str, list[_Task]] = {}
        tasks: list[_Task] = []
        first_speaker = 0
        for name, count in counts.items():
            videos = mp4_clips if name == "test" else 0
            lists[name] = []
            for number in range(count):
                speaker, index = divmod(number, clips_per_speaker)
                task = _Task(
                    Path(scratch),
                    seed,
                    first_speaker + speaker,
                    index,
                    seconds,
                    mp4=number < videos,
                    variety=variety,
                )
                lists[name].append(task)
            tasks += lists[name]
            first_speaker += -(-count // clips_per_speaker)
        _run(tasks, workers, progress)
        for name, members in lists.items():
            second_word = " NF" if name == "test" else ""  # as in LRS2's own list
            (scratch / f"{name}.txt").write_text("".join(f"{task.name}{second_word}\n" for task in members))
        (scratch / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    return output


def _check(
    counts: dict[str, int],
    seed: int,
    seconds: float,
    clips_per_speaker: int,
    mp4_clips: int,
    workers: int | None,
) -> None:
    """Raises `UserError` for impossible settings."""
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise UserError(f"expected clip counts ≥ 0 and at least one clip, got {counts}")
    if not 1 / FPS <= seconds <= 3600:
        raise UserError(f"expected seconds between {1 / FPS} (one frame) and 3600, got {seconds}")
    if seed < 0 or clips_per_speaker < 1 or (workers is not None and workers < 1):
        raise UserError(
            f"expected seed ≥ 0, clips_per_speaker ≥ 1, workers ≥ 1, got {seed}, {clips_per_speaker}, {workers}"
        )
    if not 0 <= mp4_clips <= counts["test"]:
        raise UserError(f"expected mp4_clips between 0 and test_clips ({counts['test']}), got {mp4_clips}")


def _is_done(output: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder already contains this corpus.

    Raises:
      UserError: it contains anything else.
    """
    if not output.exists():
        return False
    if not output.is_dir():
        raise UserError(f"{output} is a file, expected a folder to write the corpus to: choose another")
    if not any(output.iterdir()):
        return False
    try:
        found = json.loads((output / _SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        raise UserError(f"{output} is not empty and contains no synthetic corpus: choose another folder") from None
    if found != settings:
        raise UserError(
            f"{output} contains a corpus with other settings, {json.dumps(found)}, "
            f"expected {json.dumps(settings)}: delete it or choose another folder"
        )
    return True


def _run(tasks: list[_Task], workers: int | None, progress: bool) -> None:
    """Writes all clips, in this process or in several."""
    if workers is None and len(tasks) < _IN_PROCESS_CLIPS:
        workers = 1
    for task, result in run_jobs(
        _write_clip, tasks, workers=workers, what="synthesizing clips", progress=progress
    ):
        if isinstance(result, Crashed):
            raise UserError(
                f"the worker process that wrote {task.name} crashed (out of memory?): try fewer workers"
            )


def _write_clip(task: _Task) -> None:
    recording = record(task.seed, task.speaker, task.index, task.seconds, task.variety)
    folder = task.root / task.name
    folder.mkdir(parents=True)
    frames = render(recording.speaker.face, recording.visemes, recording.scene)
    for index, frame in enumerate(frames):
        jpeg = simplejpeg.encode_jpeg(frame, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
        (folder / f"{index}.jpg").write_bytes(jpeg)
    soundfile.write(folder / "audio.wav", recording.waveform, SAMPLE_RATE, subtype="PCM_16")
    if task.mp4:
        video = task.root / "mp4" / f"{task.name}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        frames, box = portrait(recording)
        write_mp4(video, frames, recording.waveform)
        video.with_suffix(".json").write_text(json.dumps({"box": list(box), "audio_delay_samples": 0}) + "\n")
