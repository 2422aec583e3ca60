"""The published protocol over a list of clips: accuracy by context, as a table and as JSON.

The protocol is that of docs/method.md, section 5.
"""

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtd_jax.checkpoint import checksum_of_all, find_checkpoint
from mtd_jax.config import Config
from mtd_jax.data.clip import ClipSource, UnusableClip
from mtd_jax.data.sources import open_source
from mtd_jax.distributed.launch import check_same_everywhere, exchange
from mtd_jax.download import is_url
from mtd_jax.errors import UserError
from mtd_jax.evaluation.protocol import Protocol, lrs2, protocol_named
from mtd_jax.models import describe, load_model, local, shown
from mtd_jax.network.model import SyncModel, count_parameters
from mtd_jax.network.weights import computing_in, model_arrays
from mtd_jax.scoring import Scorer
from mtd_jax.storage import check_writable, path_of, write_text
from mtd_jax.training.resume import clips_checksum

COMPUTE_DTYPES = ("as_trained", "float32", "bfloat16")
_READERS = 2  # threads that read ahead while others score

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
    source: ClipSource,
    *,
    protocol: Protocol | None = None,
    reference_edges: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy of a model: the share of windows whose offset is right, averaged over the clips of a source.

    Several processes share the clips, and so do the devices of each. All processes return the result that one
    process alone would.

    Args:
      source: clips that are in sync, from `open_source`.
      protocol: contexts and tolerances; None: those of LRS2.
      reference_edges: reproduce the published protocol's quirk in short clips, see `scoring.Scorer`.
      progress: show a progress bar.

    Returns:
      {"accuracy": {"5": …}, "clips": [{"name", "windows", "accuracy": {…}, "offset_frames"}],
      "skipped": {reason: count}}. If the protocol has two tolerances, there is an "accuracy_within_5_frames" next
      to each "accuracy". A clip's offset_frames is the median over its windows at the longest context. "skipped"
      includes the clips that the source itself skipped.

    Raises:
      UserError: no clip could be scored.
    """
    protocol = protocol or lrs2(model.config.window_frames)
    scored = _scored_by_all(model, source, protocol, reference_edges, progress)
    clips = [result for result in scored if isinstance(result, dict)]
    skipped = {reason: len(names) for reason, names in source.skipped.items()}
    for reason in scored:
        if isinstance(reason, str):
            skipped[reason] = skipped.get(reason, 0) + 1
    if not clips:
        raise UserError(f"no clip could be scored; skipped: {skipped}")
    return {**protocol.means(clips), "clips": clips, "skipped": skipped}


def _scored_by_all(
    model: SyncModel, source: ClipSource, protocol: Protocol, reference_edges: bool, progress: bool
) -> list[dict[str, Any] | str]:
    """Every clip's entry in "clips", or the reason why it has none. Process i of n scores the clips i, i + n, ….

    Each thread reads a clip, then waits for a free device to score it. There are more threads than devices, so the
    next clips are read in the meantime.
    """
    count = jax.process_count()
    own = range(jax.process_index(), len(source), count)
    devices = jax.local_devices()
    waiting: queue.SimpleQueue[Scorer] = queue.SimpleQueue()
    ended = threading.Event()
    for device in devices:
        waiting.put(Scorer(model, device))

    def score(index: int) -> dict[str, Any] | str:
        clip = source[index]
        try:
            frames = clip.frames[: clip.num_frames]
            # All of the waveform, since the last mel columns reach beyond the last frame.
            waveform = clip.waveform[: len(clip.waveform)]
        except UnusableClip as error:
            return error.reason
        scorer = waiting.get()
        try:
            if ended.is_set():
                return "the evaluation was interrupted"
            scores = scorer(frames, waveform, reference_edges=reference_edges)
        finally:
            waiting.put(scorer)
        return {"name": clip.name, "windows": len(scores), **protocol.measure(scores)}

    quiet = not progress or jax.process_index() > 0 or not Console().is_terminal
    with ThreadPoolExecutor(len(devices) + _READERS) as threads:
        try:
            results = track(
                threads.map(score, own), total=len(own), description="scoring", disable=quiet, transient=True
            )
            shares = exchange(list(results))
        finally:
            ended.set()
            threads.shutdown(cancel_futures=True)
    return [shares[index % count][index // count] for index in range(len(source))]


def write_json(path: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Writes `results` as JSON, whole or not at all; raises `UserError` if it cannot be written."""
    write_text(path, json.dumps(results, indent=2) + "\n")


def evaluate_list(
    config: Config, checkpoint: str | os.PathLike | None, list_name: str, output: str | None
) -> None:
    """`--mode=evaluate`: evaluates a checkpoint on a list of config.data.root.

    The first process prints the table and writes the JSON file.

    Args:
      config: its `data` and `evaluation` sections are used.
      checkpoint: a checkpoint directory, the work directory of a training, a .pth file or its address; None: the
        included model.
      list_name: a name in config.data.root, or a path.
      output: the JSON file; None: evaluation.json in the checkpoint directory, if it is one.

    Raises:
      UserError: bad config fields, no usable checkpoint or clip, or an output that cannot be written.
    """
    started = time.monotonic()
    if not config.data.root:
        raise UserError("config.data.root: expected the folder of the clips, got nothing")
    dtype = config.evaluation.compute_dtype
    if dtype not in COMPUTE_DTYPES:
        expected = ", ".join(COMPUTE_DTYPES)
        raise UserError(f"config.evaluation.compute_dtype: expected one of {expected}, got {dtype!r}")
    name = shown(checkpoint)
    if not output and (checkpoint is None or is_url(checkpoint) or os.path.isfile(checkpoint)):
        raise UserError(f"{name} is no directory that could hold the result: name a file with --output")
    used = None if checkpoint is None else find_checkpoint(local(checkpoint))
    model, step = load_model(used), describe(used)["step"]
    if dtype != "as_trained":
        model = computing_in(dtype, model)
    path = path_of(output or path_of(name) / "evaluation.json")
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # check_writable reports the reason
            path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    window = model.config.window_frames
    protocol = protocol_named(config.evaluation.protocol, window)
    source = open_source(config.data.format, config.data.root, list_name, min_frames=window + 1)
    edges = config.evaluation.reference_edges
    check_same_everywhere(
        {
            "clips": clips_checksum(source),
            "weights": checksum_of_all(model_arrays(model)),
            "protocol": config.evaluation.protocol,
            "reference_edges": edges,
            "compute_dtype": model.config.compute_dtype,
        }
    )
    results = evaluate(model, source, protocol=protocol, reference_edges=edges)
    if jax.process_index():
        return
    millions = count_parameters(model) / 1e6
    several = len(protocol.tolerances) > 1
    rows = {
        f"{name}, within ±{t}" if several else name: (millions, results[protocol.key(t)])
        for t in protocol.tolerances
    }
    print_table(rows, published=config.evaluation.protocol == "lrs2" and window == 5)
    print(f"checkpoint: {used or name}, step {step}, computed in {model.config.compute_dtype}")
    skipped = sum(results["skipped"].values())
    print(
        f"{len(results['clips'])} clips of {source.list_path} scored, {skipped} skipped {results['skipped'] or ''}"
    )
    settings = {
        "checkpoint": name,
        "step": step,
        "list": str(source.list_path),
        "protocol": config.evaluation.protocol,
        "reference_edges": edges,
        "compute_dtype": model.config.compute_dtype,
        "seconds": time.monotonic() - started,
    }
    write_json(path, settings | results)
    print(f"per-clip results: {path}")


def print_table(rows: Mapping[str, tuple[float, Mapping[str, float]]], *, published: bool) -> None:
    """Prints accuracies in % by context.

    Args:
      rows: {name: (parameters in millions, accuracy by context as from `evaluate`)}.
      published: print the published LRS2 rows above them.
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
