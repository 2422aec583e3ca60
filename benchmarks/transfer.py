"""Which aspects of the synthetic faces help on real ones: one short training as in configs/real.py per aspect.

For each aspect of `mtd_jax.synthetic.variety` a corpus that is alike in it (factor 0) is made. The teacher of
configs/real.py sees it alone for the first epochs, then mixed with the real clips of the list "train", all else
equal; then it is scored on other lists of real clips. --mode=preprocess made all of these. Rows "as designed" and
"twice as varied" use all aspects, "not altered" no augmentation.
Trainings are kept in --workdir, and finished rows in the JSON file: run the command again to resume it or to add
rows.

    python -m benchmarks.transfer --real=REAL --lists=val,others --workdir=DIR --epochs=6 --json=transfer.json
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.common import machine, run_benchmark, to_json, versions
from mtd_jax import compilation
from mtd_jax.checkpoint import load_model
from mtd_jax.config import load_config
from mtd_jax.data import augment
from mtd_jax.data.sources import open_source
from mtd_jax.errors import UserError
from mtd_jax.evaluation.evaluate import evaluate
from mtd_jax.storage import check_writable, write_text
from mtd_jax.synthetic.corpus import synthesize
from mtd_jax.synthetic.variety import Variety
from mtd_jax.training.train import train

REAL = flags.DEFINE_string("real", None, "Folder of real clips, in the LRS2 layout.", required=True)
LISTS = flags.DEFINE_list("lists", ["val"], "Its lists to score.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for corpora and trainings.", required=True)
EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs of 200 steps.", lower_bound=1)
ALONE = flags.DEFINE_integer("alone_epochs", 3, "Of these, the first without real clips.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Clips per step.", lower_bound=1)
CLIPS = flags.DEFINE_integer("clips", 300, "Synthetic clips of 4 s per corpus.", lower_bound=8)
SEED = flags.DEFINE_integer("seed", 0, "Of corpora and trainings.", lower_bound=0)
ROWS = flags.DEFINE_list("rows", None, "Rows of the table to make. [all]")
JSON = flags.DEFINE_string("json", None, "File to write all results to.")

ASPECTS = list(vars(Variety()))
CORPORA = {
    "as designed": Variety(),
    **{f"alike in {aspect}": Variety(**{aspect: 0.0}) for aspect in ASPECTS},
    "twice as varied": Variety(**dict.fromkeys(ASPECTS, 2.0)),
    "not altered": Variety(),
}


def main():
    compilation.prepare()
    if JSON.value:
        check_writable(JSON.value)
    sources = {name: open_source("lrs2", REAL.value, name, min_frames=6) for name in LISTS.value}
    if unknown := set(ROWS.value or ()) - CORPORA.keys():
        raise UserError(f"--rows: expected some of {', '.join(CORPORA)}, got {', '.join(unknown)}")
    settings = {
        "epochs": EPOCHS.value,
        "alone_epochs": ALONE.value,
        "batch_size": BATCH_SIZE.value,
        "clips": CLIPS.value,
        "seed": SEED.value,
    }
    result = {"benchmark": "transfer", "machine": machine(), "versions": versions("jax", "flax")} | settings
    result["rows"] = rows = rows_before(settings)
    for name in ROWS.value or CORPORA:
        if name in rows:
            continue
        print(f"{name}:", flush=True)
        model, seconds = trained(name)
        scores = {listed: evaluate(model, source)["accuracy"] for listed, source in sources.items()}
        rows[name] = {"train_seconds": round(seconds), "accuracy": scores}
        print(f"  {json.dumps(scores)}", flush=True)
        if JSON.value:
            write_text(JSON.value, to_json(result, indent=1) + "\n")
    table = Table("", *[f"{listed}, K{context}" for listed in sources for context in ("5", "15")], "minutes")
    for name, row in rows.items():
        cells = [f"{100 * row['accuracy'][listed][context]:.1f}" for listed in sources for context in ("5", "15")]
        table.add_row(name, *cells, f"{row['train_seconds'] / 60:.1f}")
    Console(width=120).print(table)


def rows_before(settings: dict) -> dict:
    """The rows of the JSON file. Raises `UserError` if they were made with other settings."""
    if not JSON.value or not Path(JSON.value).exists():
        return {}
    before = json.loads(Path(JSON.value).read_text())
    if {name: before.get(name) for name in settings} != settings:
        raise UserError(f"{JSON.value}: has rows of other settings than {settings}; name another file")
    return before["rows"]


def trained(name: str):
    """The model of a row, and how long its training took."""
    folder = Path(WORKDIR.value) / name.replace(" ", "_")
    made = Path(WORKDIR.value) / ("as_designed" if name == "not altered" else folder.name) / "corpus"
    corpus = synthesize(
        made,
        seed=SEED.value,
        train_clips=CLIPS.value,
        val_clips=12,
        test_clips=0,
        variety=CORPORA[name],
    )
    config: ConfigDict = load_config("real", "teacher")
    config.seed = SEED.value
    config.data.root, config.data.extra.root = REAL.value, str(corpus)
    config.data.extra.alone_epochs = float(ALONE.value)
    config.draws_per_epoch = config.draws_per_epoch // config.batch_size * BATCH_SIZE.value
    config.batch_size = BATCH_SIZE.value
    config.epochs = EPOCHS.value
    if name == "not altered":
        config.data.augment = vars(augment.OFF)
    done = train(config, folder / "model", report=lambda line: print(f"  {line}", flush=True))
    return load_model(folder / "model"), done["train_seconds"]


if __name__ == "__main__":
    run_benchmark(main)
