"""`--mode=score`: scores a folder of generated videos, as a table, as JSON, and as a page with histograms."""

import dataclasses
import html
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console
import rich.table
from matplotlib.figure import Figure
from rich.markup import escape

from mtd_jax.errors import UserError
from mtd_jax.faces.search import face_source
from mtd_jax.models import load_model, shown
from mtd_jax.preprocess.videos import videos_in
from mtd_jax.scoring import MAX_SHIFT, Scorer
from mtd_jax.storage import check_writable, write_text
from mtd_jax.sync.command import progress_bar, why_failed
from mtd_jax.sync.detect import detect_offset
from mtd_jax.sync.report import STYLE, drawn
from mtd_jax.sync.score import MEASURES, VERSION, ClipScore, clip_score, compared, set_score
from mtd_jax.sync.verdict import one_line_json, two_digits

_LISTED = 40  # clips, in the table on the terminal


def score(
    checkpoint,
    videos,
    references=None,
    *,
    faces: str = "mtcnn",
    as_json: bool = False,
    report: str | None = None,
) -> int:
    """Runs the command; stdout gets results only, progress and what failed go to stderr.

    Args:
      checkpoint: see `load_model`; None: the included model.
      videos: a folder, searched for videos in all its folders.
      references: a folder with real videos of the same names (any suffix), which the others are compared with.
      faces: see `detect_offset`.
      as_json: a JSON object instead of tables.
      report: HTML page to write.

    Returns:
      The exit code: 1 if any file failed.

    Raises:
      UserError: no usable video at all, or the arguments don't fit.
    """
    generated = _named(videos)
    real = _named(references) if references else {}
    if references and not generated.keys() & real.keys():
        raise UserError(f"{references}: no video has the name of one in {videos}, such as {next(iter(generated))}")
    if report:
        check_writable(report)
    scorer, source = Scorer(load_model(checkpoint)), face_source(faces)

    def measure(path: Path) -> ClipScore:
        return clip_score(detect_offset(scorer, path, faces=source, thorough=True, max_shift=MAX_SHIFT))

    clips, failed = _each(generated, measure)
    result: dict[str, Any] = {
        "score": f"MTD-JAX score, version {VERSION}",
        "model": shown(checkpoint),
        "videos": str(videos),
        "set": set_score(clips),
    }
    if references:
        scored, lost = _each(real, measure)
        failed |= lost
        if not clips.keys() & scored.keys():
            raise UserError(f"{references}: of no pair with {videos} both videos could be scored; see above")
        result |= {"references": set_score(scored), "compared": compared(clips, scored)}
    result |= {"clips": {name: dataclasses.asdict(clip) for name, clip in clips.items()}, "failed": failed}
    if report:
        write_text(report, _page(result))
    if as_json:
        print(one_line_json(result))
    else:
        _print(result)
    return 1 if failed else 0


def _named(folder) -> dict[str, Path]:
    """The videos of a folder by their paths in it, without suffix. Raises `UserError` if two have one name."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: expected a folder of videos")
    named: dict[str, Path] = {}
    for path in videos_in(folder):
        name = str(path.relative_to(folder).with_suffix(""))
        if named.setdefault(name, path) != path:
            raise UserError(f"{path}: another video there is called {name}, too; names tell the clips apart")
    return named


def _each(
    videos: dict[str, Path], measure: Callable[[Path], ClipScore]
) -> tuple[dict[str, ClipScore], dict[str, str]]:
    """Scores by name, and what failed. Raises `UserError` if all did."""
    scores: dict[str, ClipScore] = {}
    failed: dict[str, str] = {}
    with progress_bar() as bar:
        for number, (name, path) in enumerate(videos.items()):
            bar.stage(path.name, len(videos), number)
            try:
                scores[name] = measure(path)
            except Exception as error:  # one odd file doesn't end the run
                failed[str(path)] = why_failed(error).removeprefix(f"{path}: ")
                print(f"{path}: failed: {failed[str(path)]}", file=sys.stderr)
    if not scores:
        raise UserError(f"none of the {len(videos)} videos could be scored; see above")
    return scores, failed


def _print(result: dict[str, Any]) -> None:
    console = rich.console.Console()
    clips = result["clips"]
    if len(clips) <= _LISTED:
        name = rich.table.Column("clip", overflow="fold")  # names that are cut tell nothing apart
        table = rich.table.Table(name, "logit at 0", "within ±1", "offset", "confidence", "distance", "contrast")
        for name, clip in clips.items():
            logit, within, distance, contrast = (
                f"{clip[measure]:.2f}" for measure in ("logit", "within_1", "distance", "contrast")
            )
            offset, confidence = f"{clip['offset_frames']:+d}", two_digits(clip["confidence"])
            table.add_row(escape(name), logit, within, offset, confidence, distance, contrast)
        console.print(table)
    table = rich.table.Table("", *MEASURES.values())
    for row in _rows(result):
        table.add_row(*row)
    console.print(table)
    if alone := _alone(result):
        console.print(alone, highlight=False, markup=False)
    offsets = ", ".join(f"{int(offset):+d}: {count}" for offset, count in result["set"]["offsets"].items())
    console.print(f"offsets in frames: {offsets}", highlight=False)
    count = f"{result['set']['clips']} clips, {len(result['failed'])} failed"
    named = f"{result['score']}, by {result['model']}; {count}; means with 95 % bootstrap intervals"
    console.print(named, highlight=False)


def _rows(result: dict[str, Any]) -> list[list[str]]:
    """What is shown of the sets: which, of how many clips, and each measure."""
    rows = []
    for what, name in (("these videos", "set"), ("references", "references"), ("difference of pairs", "compared")):
        if name in result:
            found = result[name]
            count = found["pairs" if name == "compared" else "clips"]
            rows.append([f"{what} ({count})", *(_with_interval(found[measure], count) for measure in MEASURES)])
    return rows


def _alone(result: dict[str, Any]) -> str:
    """Names the clips that are in no pair."""
    alone = result["compared"]["alone"] if "compared" in result else []
    shown = ", ".join(alone[:_LISTED]) + (", …" if len(alone) > _LISTED else "")
    return f"in no pair: {shown}" if alone else ""


def _with_interval(value: dict[str, Any], count: int) -> str:
    low, high = value["interval"]
    return f"{value['mean']:.2f}" + (f" ({low:.2f} … {high:.2f})" if count > 1 else "")


def _page(result: dict[str, Any]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("", *MEASURES.values()))
    body = "".join(
        f"<tr><th>{what}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for what, *values in _rows(result)
    )
    named = f"{result['score']}, by {result['model']}, {result['set']['clips']} clips"
    lost = "".join(f"<li>{html.escape(f'{path}: {why}')}</li>" for path, why in result["failed"].items())
    notes = f"<h2>Failed</h2><ul>{lost}</ul>" if lost else ""
    if alone := _alone(result):
        notes = f"<p>{html.escape(alone[0].upper() + alone[1:])}</p>{notes}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Sync score</title><style>{STYLE}</style></head><body>
<h1>Sync score of {html.escape(result["videos"])}</h1><p class="note">{html.escape(named)}</p>
<table><tr>{head}</tr>{body}</table>{notes}
<div class="drawings"><figure><img alt="histograms of offsets, logits and contrast" src="{_histograms(result)}">
<figcaption>Of all clips. Offsets are in frames of 40 ms, positive = the audio is early.</figcaption></figure>
</div>
<p class="note">Means over clips, with 95 % bootstrap intervals. Numbers of other models or versions are not
comparable, nor are LSE-D and LSE-C of SyncNet.</p></body></html>
"""


def _histograms(result: dict[str, Any]) -> str:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    clips = list(result["clips"].values())
    for axes, name in zip(figure.subplots(1, 3), ("offset_frames", "logit", "contrast"), strict=True):
        values = [clip[name] for clip in clips]
        bins = [k - 0.5 for k in range(-MAX_SHIFT, MAX_SHIFT + 2)] if name == "offset_frames" else 20
        axes.hist(values, bins=bins, color="tab:blue")
        axes.set(xlabel=MEASURES.get(name, "offset in frames"), ylabel="clips")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return drawn(figure)
