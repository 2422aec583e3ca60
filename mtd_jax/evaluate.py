"""The published protocol over a list of clips: accuracy by context, as a table and as JSON (SPEC 5)."""

import json
import time
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtd_jax.checkpoint import load_model
from mtd_jax.data.ahead import ReadAhead
from mtd_jax.data.source import open_source
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.errors import UserError
from mtd_jax.model import SyncModel, count_parameters
from mtd_jax.protocol import Protocol, lrs2, protocol_named
from mtd_jax.scoring import score_clip

# LRS2, K = 5, 7, 9, 11, 13, 15, in %: arXiv 2210.15563 and 2204.02090. Parameters in millions.
PUBLISHED_LRS2 = {
    "SyncNet": (13.6, (75.8, 82.3, 87.6, 91.8, 94.5, 96.1)),
    "Perfect Match": (13.6, (88.1, 93.8, 96.4, 97.9, 98.7, 99.1)),
    "AVST": (42.4, (92.0, 95.5, 97.7, 98.8, 99.3, 99.6)),
    "VocaLiST": (80.1, (92.8, 96.7, 98.4, 99.3, 99.6, 99.8)),
    "VocaLiST, reproduced": (80.1, (92.44, 96.52, 98.27, 99.13, 99.53, 99.76)),
    "MTDVocaLiST": (13.28, (91.46, 95.74, 97.99, 98.95, 99.46, 99.68)),
}


def evaluate(
    model: SyncModel,
    source,
    *,
    protocol: Protocol | None = None,
    reference_edges: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every clip of a source and takes the mean over clips of the share of right windows.

    Args:
      source: clips in sync, from `open_source`; what it left out itself is in its `skipped`.
      protocol: contexts and tolerances; None: those of LRS2.
      reference_edges: the published protocol's quirk in short clips, see `scoring.score_clip`.

    Returns:
      {"accuracy": {"5": …}, "clips": [{"name", "windows", "accuracy": {…}, "offset_frames"}],
      "skipped": {reason: count}, "seconds_waiting_for_clips": how long reading held up the scoring}, beside
      "accuracy" also "accuracy_within_5_frames" where the protocol has two tolerances. A clip's offset_frames is
      the median over its windows at the longest context.

    Raises:
      UserError: if no clip could be scored.
    """
    protocol = protocol or lrs2(model.config.window_frames)
    clips, skipped = [], {reason: len(names) for reason, names in source.skipped.items()}
    quiet = not progress or not Console().is_terminal
    reading = ReadAhead(source)
    for clip in track(reading, total=len(source), description="scoring", disable=quiet, transient=True):
        if isinstance(clip, UnusableClip):
            skipped[clip.reason] = skipped.get(clip.reason, 0) + 1
            continue
        scores = score_clip(model, clip.frames, clip.waveform, reference_edges=reference_edges)
        clips.append({"name": clip.name, "windows": len(scores), **protocol.measure(scores)})
    if not clips:
        raise UserError(f"none of the clips could be scored; left out: {skipped}")
    return {
        **protocol.means(clips),
        "clips": clips,
        "skipped": skipped,
        "seconds_waiting_for_clips": reading.seconds_waiting,
    }


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
    """`--mode=evaluate`: scores a list of config.data.root, prints the table, writes the JSON."""
    started = time.monotonic()
    if not config.data.root:
        raise UserError("config.data.root: expected the folder of the clips, got nothing")
    model = load_model(checkpoint)
    path = epath.Path(output or epath.Path(checkpoint) / "evaluation.json")
    _check_writable(path)
    window = model.config.window_frames
    protocol = protocol_named(config.evaluation.protocol, window)
    source = open_source(config.data.format, config.data.root, list_name, min_frames=window + 1)
    results = evaluate(model, source, protocol=protocol, reference_edges=config.evaluation.reference_edges)
    millions = count_parameters(model) / 1e6
    several = len(protocol.tolerances) > 1
    rows = {
        f"{checkpoint}, within ±{t}" if several else str(checkpoint): (millions, results[protocol.key(t)])
        for t in protocol.tolerances
    }
    print_table(rows, published=config.evaluation.protocol == "lrs2" and window == 5)
    left_out = sum(results["skipped"].values())
    print(
        f"{len(results['clips'])} clips of {source.list_path} scored, "
        f"{left_out} left out {results['skipped'] or ''}"
    )
    settings = {
        "checkpoint": str(checkpoint),
        "list": str(source.list_path),
        "protocol": config.evaluation.protocol,
        "reference_edges": config.evaluation.reference_edges,
        "seconds": time.monotonic() - started,
    }
    write_json(path, settings | results)
    print(f"per-clip results: {path}")
