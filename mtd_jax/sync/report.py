"""A verdict as one self-contained HTML page, and the drawings for it and for the demo."""

import base64
import html
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave

from mtd_jax.data.clip import FPS
from mtd_jax.storage import write_text
from mtd_jax.sync.evidence import TOLERANCE, Scores, pool
from mtd_jax.sync.verdict import CONFIDENT, Result, Track, two_digits

DRAWINGS_STYLE = """
.drawings { display: flex; flex-wrap: wrap; gap: 1rem } figure { flex: 1 1 22rem; margin: 1rem 0; min-width: 0 }
figure img { width: 100% } figcaption { color: #666; font-size: .9rem }
"""
STYLE = (
    DRAWINGS_STYLE
    + """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2.5rem }
.verdict { font-size: 1.5rem; padding: .8rem 1.2rem; border-left: .5rem solid; background: #f5f5f5 }
.good { border-color: #2a8f4f } .bad { border-color: #c0392b } .unsure { border-color: #d39e00 }
.track { display: flex; gap: 1.2rem; align-items: center }
.track img { width: 96px; height: 96px; border-radius: 6px }
table { border-collapse: collapse } td, th { padding: .1rem 1rem .1rem 0; text-align: left }
th { font-weight: 600 } .note { color: #666; font-size: .9rem }
"""
)


def write_report(path: str | os.PathLike, result: Result) -> None:
    """Writes the page, whole or not at all; raises `UserError` if it cannot be written."""
    write_text(path, page(result))


def page(result: Result) -> str:
    """The page: the verdict, the film's score map and its offset over time, warnings, and the faces."""
    name = html.escape(os.path.basename(result.video))
    warnings = "".join(f"<li>{html.escape(line)}</li>" for line in result.warnings)
    tracks = "".join(_track(number, track, number == result.speaker) for number, track in enumerate(result.tracks))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Sync of {name}</title><style>{STYLE}</style></head><body>
<h1>{name}</h1>
{_headline(result)}
{drawings(result)}
{f"<h2>Notes</h2><ul>{warnings}</ul>" if warnings else ""}
{tracks}
<p class="note">Offsets are in frames of 40 ms; positive means that the audio is early. In sync means within
±{TOLERANCE} frame. Confidence compares the best offset with all others: near 1 no other comes close, below
{CONFIDENT:g} the offset is a guess.</p>
</body></html>
"""


def drawings(result: Result) -> str:
    """The score map and the offset over time, as HTML, to be styled with `DRAWINGS_STYLE`."""
    return f"""<div class="drawings">
<figure><img alt="score of every window at every offset" src="{_score_map(result)}">
<figcaption>How well each moment of video fits the audio at each offset. A bright column is an offset that fits
throughout. White areas are beyond the start or end of the audio, or were not looked at. White dots mark the best
offset of each window alone.</figcaption></figure>
<figure><img alt="offset over time" src="{_offset_over_time(result)}">
<figcaption>Dots: the best offset of the 0.6 s around each moment. Lines: the best offset of about 3 s, solid where
it is confident. A line at another height means an edit, or drifting clocks.</figcaption></figure>
</div>"""


def _headline(result: Result) -> str:
    kind = {"in_sync": "good", "out_of_sync": "bad"}.get(result.verdict, "unsure")
    text = result.summary[0].upper() + result.summary[1:]
    return f'<p class="verdict {kind}">{html.escape(text)}</p><p class="note">{html.escape(result.basis)}</p>'


def _track(number: int, track: Track, is_speaker: bool) -> str:
    rows = {
        "time": f"{track.start_seconds:.2f} – {track.end_seconds:.2f} s",
        "offset": f"{track.offset_frames:+d} frames, {1000 * track.offset_seconds:+.0f} ms",
        "confidence": two_digits(track.confidence),
    }
    table = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows.items())
    role = " (the speaker)" if is_speaker else ""
    return f"""<h2>Face {number}{role}</h2>
<div class="track"><img alt="the face" src="{_png(track.thumbnail)}"><table>{table}</table></div>
"""


def draw_score_map(axes: Axes, scores: Scores, true_offset: int | None = None) -> AxesImage:
    """Draws scores over offset and time, with each window's best offset.

    Args:
      true_offset: in frames, if it is known and to be marked.

    Returns:
      The image, for a colour bar. What has no score stays white.
    """
    max_shift, every = scores.max_shift, scores.every
    first, last = int(scores.starts[0]), int(scores.starts[-1])
    rows = (scores.starts - first) // every
    inside = np.full(((last - first) // every + 1, 2 * max_shift + 1), np.nan)
    inside[rows] = scores.table[:, ::-1]  # column c is offset max_shift − c
    extent = (-max_shift - 0.5, max_shift + 0.5, (last + every) / FPS, first / FPS)
    image = axes.imshow(inside, aspect="auto", extent=extent, cmap="viridis", interpolation="nearest")
    seen = np.isfinite(scores.table).any(axis=1)
    best = max_shift - np.argmax(np.nan_to_num(scores.table[seen], nan=-np.inf), axis=1)
    middles = (scores.starts[seen] + every / 2) / FPS
    axes.plot(best, middles, ".", color="white", markersize=2, label="best of each window")
    if true_offset is not None:
        for side in (-0.5, 0.5):
            label = "truth" if side > 0 else None
            axes.axvline(true_offset + side, color="tab:red", linewidth=1.2, linestyle="--", label=label)
    axes.set_xlabel("offset in frames of 40 ms (positive: the audio is early)")
    axes.set_ylabel("window start in seconds")
    return image


def draw_demo(
    path: str | os.PathLike, scores: Scores, summary: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    """Draws the demo's figure: score map of the shifted video, and accuracy by context of the three models.

    Args:
      path: the .png file to write.
      scores: of the shifted video.
      summary: as the demo writes it to summary.json.
      labels: names of the models, by their keys in `summary`.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shifted = summary["shifted_clip"]
    image = draw_score_map(left, scores, shifted["true_offset"])
    left.legend(loc="upper right", fontsize=8, markerscale=4, facecolor="black", labelcolor="white")
    left.set_title(
        f"A video with shifted audio: true offset {shifted['true_offset']:+d}, "
        f"measured {shifted['measured_offset']:+d}",
        fontsize=11,
    )
    figure.colorbar(image, ax=left, label="logit: in sync?")
    styles = {
        "teacher": ("o-", "tab:gray"),
        "student_plain": ("s--", "tab:orange"),
        "student_mtd": ("^-", "tab:blue"),
    }
    for variant, (style, color) in styles.items():
        accuracy = summary[variant]["accuracy"]
        contexts, percent = [int(k) for k in accuracy], [100 * a for a in accuracy.values()]
        label = f"{labels[variant]} ({summary[variant]['params'] / 1e6:.2f} M)"
        right.plot(contexts, percent, style, color=color, label=label)
    right.axhline(
        100 * 3 / (2 * scores.max_shift + 1), color="black", linewidth=0.8, linestyle=":", label="chance"
    )
    right.set(xlabel="context K in frames", ylabel="windows within ±1 frame (%)", ylim=(0, 102))
    right.set_title("Accuracy on unseen synthetic speakers", fontsize=11)
    right.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=110)


def _score_map(result: Result) -> str:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    image = draw_score_map(axes, pool([track.scores for track in result.tracks]))
    axes.set_ylabel("seconds")
    figure.colorbar(image, ax=axes, label="logit: in sync?")
    return drawn(figure)


def _offset_over_time(result: Result) -> str:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    windows = [window for track in result.tracks for window in track.windows]
    times = [window.start_seconds for window in windows]
    axes.plot(times, [w.offset_frames for w in windows], ".", markersize=3, color="black", label="0.6 s")
    for sure, style in ((True, "-"), (False, ":")):
        chosen = [s for s in result.segments if (s.confidence >= CONFIDENT) == sure]
        for n, s in enumerate(chosen):
            label = None if n else ("3 s, confident" if sure else "3 s, unsure")
            ends = (s.start_seconds, s.end_seconds)
            axes.plot(ends, (s.offset_frames,) * 2, style, color="tab:blue", linewidth=3, label=label)
    axes.axhspan(-TOLERANCE - 0.5, TOLERANCE + 0.5, color="tab:green", alpha=0.15, label="in sync")
    limit = result.tracks[0].scores.max_shift + 0.5
    axes.set(xlabel="seconds", ylabel="offset in frames (positive: the audio is early)", ylim=(-limit, limit))
    axes.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside upper center", ncols=4)
    return drawn(figure)


def drawn(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return _data_uri(buffer.getvalue())


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
