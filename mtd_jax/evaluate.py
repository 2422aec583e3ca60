"""The published protocol over a list of clips: accuracy by context, as a table and as JSON (SPEC 5)."""

import json
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtd_jax.arrays import bind, model_arrays
from mtd_jax.checkpoint import load_model
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.errors import UserError
from mtd_jax.model import SyncModel, count_parameters
from mtd_jax.processes import check_same_everywhere, exchange
from mtd_jax.resume import arrays_checksum, clips_checksum
from mtd_jax.scoring import context_accuracy, score_clip, window_offsets

# LRS2, K = 5, 7, 9, 11, 13, 15, in %: arXiv 2210.15563 and 2204.02090. Parameters in millions.
PUBLISHED_LRS2 = {
    "SyncNet": (13.6, (75.8, 82.3, 87.6, 91.8, 94.5, 96.1)),
    "Perfect Match": (13.6, (88.1, 93.8, 96.4, 97.9, 98.7, 99.1)),
    "AVST": (42.4, (92.0, 95.5, 97.7, 98.8, 99.3, 99.6)),
    "VocaLiST": (80.1, (92.8, 96.7, 98.4, 99.3, 99.6, 99.8)),
    "VocaLiST, reproduced": (80.1, (92.44, 96.52, 98.27, 99.13, 99.53, 99.76)),
    "MTDVocaLiST": (13.28, (91.46, 95.74, 97.99, 98.95, 99.46, 99.68)),
}


def evaluate(model: SyncModel, source, *, reference_edges: bool = True, progress: bool = True) -> dict[str, Any]:
    """Scores every clip of a source and takes the mean over clips of the share of right windows.

    Several processes share the clips, and so do the devices of each; all get the same result, that of one.

    Args:
      source: clips in sync, for example `Lrs2Source`; what it left out itself is in its `skipped`.
      reference_edges: the published protocol's quirk in short clips, see `scoring.score_clip`.

    Returns:
      {"accuracy": {"5": …}, "clips": [{"name", "windows", "accuracy": {…}, "offset_frames"}],
      "skipped": {reason: count}}. A clip's offset_frames is the median over its windows at the longest context.

    Raises:
      UserError: if no clip could be scored.
    """
    contexts = contexts_of(model.config.window_frames)
    scored = _scored_by_all(model, source, contexts, reference_edges, progress)
    clips = [result for result in scored if isinstance(result, dict)]
    skipped = {reason: len(names) for reason, names in source.skipped.items()}
    for reason in scored:
        if isinstance(reason, str):
            skipped[reason] = skipped.get(reason, 0) + 1
    if not clips:
        raise UserError(f"none of the clips could be scored; left out: {skipped}")
    accuracy = {str(k): float(np.mean([clip["accuracy"][str(k)] for clip in clips])) for k in contexts}
    return {"accuracy": accuracy, "clips": clips, "skipped": skipped}


def _scored_by_all(model, source, contexts, reference_edges, progress) -> list[dict | str]:
    """Of every clip its entry in "clips", or the reason why it has none: clip i is process i mod n's to score.

    Within a process a thread per device takes the next clip when it is done with one.
    """
    count = jax.process_count()
    own = range(jax.process_index(), len(source), count)
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for device in jax.local_devices():
        arrays = jax.device_put(model_arrays(model), device)
        waiting.put(bind(model.config, arrays))

    def score(index):
        replica = waiting.get()
        try:
            return _score_one(replica, source[index], contexts, reference_edges)
        finally:
            waiting.put(replica)

    quiet = not progress or jax.process_index() > 0 or not Console().is_terminal
    with ThreadPoolExecutor(jax.local_device_count()) as threads:
        scores = threads.map(score, own)
        shares = exchange(
            list(track(scores, total=len(own), description="scoring", disable=quiet, transient=True))
        )
    return [shares[index % count][index // count] for index in range(len(source))]


def _score_one(model, clip, contexts, reference_edges) -> dict | str:
    window = model.config.window_frames
    try:
        frames = clip.frames[: clip.num_frames]
        # The whole waveform: its last mel columns reach beyond the last frame.
        waveform = clip.waveform[: len(clip.waveform)]
    except UnusableClip as error:
        return error.reason
    scores = score_clip(model, frames, waveform, reference_edges=reference_edges)
    return {
        "name": clip.name,
        "windows": len(scores),
        "accuracy": {str(k): context_accuracy(scores, k, window_frames=window) for k in contexts},
        "offset_frames": float(np.median(window_offsets(scores, contexts[-1], window))),
    }


def contexts_of(window_frames: int) -> tuple[int, ...]:
    """K = T, T + 2, … T + 10 frames: the published ones for T = 5."""
    return tuple(range(window_frames, window_frames + 11, 2))


def print_table(rows: dict[str, tuple[float, dict[str, float]]], *, published: bool):
    """Prints accuracies in % by context.

    Args:
      rows: {name: (parameters in millions, accuracy by context as from `evaluate`)}.
      published: put the published LRS2 rows above them.
    """
    contexts = next(iter(rows.values()))[1].keys()
    title = "Accuracy (%) by context K in frames"
    table = Table("", "params", *(f"K{k}" for k in contexts), title=title)
    if published:
        for name, (millions, percent) in PUBLISHED_LRS2.items():
            table.add_row(
                f"{name} (published, LRS2)", f"{millions:g} M", *(f"{p:g}" for p in percent), style="dim"
            )
        table.add_section()
    for name, (millions, accuracy) in rows.items():
        table.add_row(name, f"{millions:.2f} M", *(f"{100 * accuracy[k]:.2f}" for k in contexts))
    Console(width=100).print(table)


def _check_writable(path):
    """Finds out before the scoring, not after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.partial"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another --output") from error


def write_json(path, results: dict):
    """Writes `results` as JSON, whole or not at all."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)


def evaluate_list(config, checkpoint, list_name: str, output: str | None):
    """`--mode=evaluate`: scores a list of config.data.root; the first process writes table and JSON."""
    started = time.monotonic()
    if not config.data.root:
        raise UserError("config.data.root: expected the folder of the clips, got nothing")
    model = load_model(checkpoint)
    path = epath.Path(output or epath.Path(checkpoint) / "evaluation.json")
    if jax.process_index() == 0:
        _check_writable(path)
    source = Lrs2Source(config.data.root, list_name, min_frames=model.config.window_frames + 1)
    edges = config.evaluation.reference_edges
    weights = arrays_checksum(model_arrays(model))
    check_same_everywhere({"clips": clips_checksum(source), "reference_edges": edges, "weights": weights})
    results = evaluate(model, source, reference_edges=edges)
    if jax.process_index():
        return
    print_table(
        {str(checkpoint): (count_parameters(model) / 1e6, results["accuracy"])},
        published=model.config.window_frames == 5,
    )
    left_out = sum(results["skipped"].values())
    print(
        f"{len(results['clips'])} clips of {source.list_path} scored, "
        f"{left_out} left out {results['skipped'] or ''}"
    )
    settings = {
        "checkpoint": str(checkpoint),
        "list": str(source.list_path),
        "reference_edges": edges,
        "seconds": time.monotonic() - started,
    }
    write_json(path, settings | results)
    print(f"per-clip results: {path}")
