"""Training configuration: every field with its default, and the checks that need nothing compiled.

`configs/*.py` start from `default_config` and change fields; a command line changes more of them with
`--config.FIELD=VALUE`. A field that is not here cannot be set.
"""

import dataclasses
import runpy
from pathlib import Path
from typing import Any, TypeAlias

import ml_collections

from mtd_jax.data import augment
from mtd_jax.data.sources import FORMATS
from mtd_jax.distributed.sharding import mesh_shape
from mtd_jax.errors import UserError
from mtd_jax.network.model import ENCODERS, ModelConfig

Config: TypeAlias = Any  # a ConfigDict, whose fields have no types
LOSSES = ("bce", "mtd", "mtd_layers", "kd", "rkd", "fitnet", "minilm",
          "features", "listwise", "dist", "interactive", "contrastive")  # fmt: skip
OF_RELATIONS = ("mtd", "mtd_layers", "minilm")  # losses that compare the layers of both networks, one by one
OF_LOGITS = ("kd", "listwise", "dist")  # losses that need nothing of the teacher but its logits
_OF_GRIDS = ("listwise", "dist", "interactive", "contrastive")  # losses that compare windows of the same clip
SCHEDULES = ("constant", "stepwise", "cosine")


def default_config(model: ModelConfig) -> Config:
    """The published recipe (docs/method.md, section 4) around `model`, as plain training without a teacher."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": dataclasses.asdict(model),
            "teacher": "",  # checkpoint of the frozen teacher, or "box"; empty: none
            "teacher_scores": "",  # instead of the teacher, its stored scores: folder of --mode=store_scores
            "init": "",  # checkpoint whose weights the training starts from, or "box"; empty: fresh ones
            "batch_size": 128,  # clips, over all devices
            "epochs": 80,
            "draws_per_epoch": 0,  # clips drawn per epoch; 0: as many as the list has
            "data": {
                "format": "lrs2",  # layout of root: one of data.sources.FORMATS
                "root": "",
                "train_list": "pretrain",  # lrs2: a name in root without .txt, or a path; else a split
                "val_list": "val",
                "pairing": "reference",  # "reference": one pair per window; "grid": all pairs of `windows` windows
                "windows": 8,
                "min_gap": 1,  # frames between the starts of two windows of a clip in a grid
                "clips_per_grid": 1,  # whose windows make up a grid
                "workers": 4,  # processes that read clips; 0: threads of this one
                "extra": {  # a second source of training clips, in the same format
                    "root": "",  # empty: none
                    "train_list": "train",
                    "share": 0.25,  # of the draws
                    "alone_epochs": 0.0,  # for so long at the beginning all draws are from it
                },
                "augment": dataclasses.asdict(augment.OFF),  # TRANSFORM: (probability, low, high)
            },
            "loss": {
                "name": "bce",  # one of LOSSES
                "temperature": 1.0,
                "clamp_va": True,  # quirk of the released code, see losses.relation_kl
                "use_attention": True,  # CAD
                "use_value": True,  # VR
                "layers": {"fusion": (), "av": (), "va": ()},  # of mtd_layers, counted from 1
                "layer_weight": 1.0,  # of mtd_layers
                "distill_weight": 1.0,  # of features, listwise, dist, interactive and contrastive
                "balance_pairs": False,  # positives of a grid weigh as much as its negatives
                "info_nce_weight": 0.0,  # of the InfoNCE term over rows and columns of a grid
                "token_info_nce_weight": 0.0,  # of the same on the prenets' tokens, see losses.token_info_nce
            },
            "optimizer": {
                "learning_rate": 5e-5,
                "loss_learning_rate": 5e-5,  # of what is learned with the loss: uncertainty weights, FitNet's maps
                "schedule": "constant",  # "stepwise": the published one; "cosine": to 0 at the end
                "warmup_epochs": 0.0,
                "decay_epochs": 20,  # of "stepwise"
                "decay_rate": 0.8,  # of "stepwise"
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # of the model's gradient; 0: not clipped
            },
            "mesh": {
                "data": -1,  # devices along the data axis; -1: all that fsdp leaves
                "fsdp": 1,  # devices that share each kernel and its optimiser state, see sharding.kernel_spec
            },
            "val_batch_size": 128,
            "val_pairs_per_clip": 1,
            "evaluation": {  # of --mode=evaluate
                "protocol": "lrs2",  # contexts and tolerances: a name in protocol.PROTOCOLS
                "reference_edges": True,  # quirk, see scoring.score_clip
                "compute_dtype": "as_trained",  # or float32, bfloat16
            },
            "log_every": 50,  # steps
            "checkpoint_every": 0,  # steps between the ends of epochs; 0: at their ends only
        }
    )


NO_DROPOUT = {"embedding_dropout": 0.0, "relu_dropout": 0.0, "residual_dropout": 0.0}  # of `ModelConfig`


def small_config(model: ModelConfig) -> Config:
    """The recipe for small networks and few clips: grids of windows, InfoNCE, a cosine; not a published one."""
    config = default_config(model)
    config.data.train_list = "train"
    config.data.pairing = "grid"
    config.data.windows = 8
    config.data.min_gap = 5  # no shared frames: with overlapping windows the loss stays at chance for long
    config.batch_size = 4
    config.loss.balance_pairs = True
    config.loss.info_nce_weight = 1.0
    config.loss.token_info_nce_weight = 1.0  # without this the demo's MTD student stays at chance
    config.optimizer.learning_rate = 3e-3
    config.optimizer.loss_learning_rate = 2e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0.4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.val_batch_size = 32
    config.val_pairs_per_clip = 8
    config.log_every = 20
    return config


def model_config(config: Config) -> ModelConfig:
    """The frozen model config of a training config."""
    return ModelConfig(**config.model.to_dict())


def augmentation(config: Config) -> augment.Augmentation:
    """How training clips are altered. Raises `UserError` on a range that makes no sense."""
    return augment.Augmentation(**{name: tuple(value) for name, value in config.data.augment.items()})


def validate(config: Config, num_devices: int, num_processes: int = 1) -> None:
    """Raises `UserError` on any field that cannot work, before anything is read or compiled.

    Args: num_devices: of all num_processes processes together.
    """
    model_config(config)
    augmentation(config)
    _check(config.loss.name in LOSSES, "loss.name", f"one of {', '.join(LOSSES)}", config.loss.name)
    _check(
        config.optimizer.schedule in SCHEDULES,
        "optimizer.schedule",
        f"one of {', '.join(SCHEDULES)}",
        config.optimizer.schedule,
    )
    if config.loss.name == "bce" and config.teacher:
        raise UserError(
            "config.teacher is set, but config.loss.name is bce, which uses none; set the loss or no teacher"
        )
    if config.loss.name != "bce" and not (config.teacher or config.teacher_scores):
        raise UserError(
            f"config.loss.name={config.loss.name} needs a teacher: set config.teacher to a checkpoint directory"
        )
    if config.teacher_scores:
        _check(not config.teacher, "teacher", "nothing beside config.teacher_scores", config.teacher)
        _check(config.loss.name in OF_LOGITS, "loss.name", f"with scores {', '.join(OF_LOGITS)}", config.loss.name)
    if config.loss.name in OF_RELATIONS and config.model.fusion == "none":
        raise UserError(f"config.loss.name={config.loss.name} compares transformers: model.fusion=none has none")
    _check(bool(config.data.root), "data.root", "the folder of the clips", "nothing")
    _check(config.data.format in FORMATS, "data.format", f"one of {', '.join(FORMATS)}", config.data.format)
    for name in ("batch_size", "epochs", "val_batch_size", "val_pairs_per_clip", "log_every"):
        _check(config[name] >= 1, name, "at least 1", config[name])
    for name in ("draws_per_epoch", "checkpoint_every", "seed"):
        _check(config[name] >= 0, name, "0 or more", config[name])
    _check(0 <= config.data.extra.share <= 1, "data.extra.share", "0 to 1", config.data.extra.share)
    alone = config.data.extra.alone_epochs
    _check(alone >= 0, "data.extra.alone_epochs", "0 or more", alone)
    if alone and not config.data.extra.root:
        raise UserError(
            "config.data.extra.root: expected the folder of the clips that the first "
            f"{alone:g} epochs are about (--mode=synthesize makes one), got nothing; "
            "without them set config.data.extra.alone_epochs=0"
        )
    _check(config.data.workers >= 0, "data.workers", "0 or more", config.data.workers)
    for name in ("layer_weight", "distill_weight", "info_nce_weight", "token_info_nce_weight"):
        _check(config.loss[name] >= 0, f"loss.{name}", "0 or more", config.loss[name])
    _check(0 < config.optimizer.decay_rate <= 1, "optimizer.decay_rate", "in (0, 1]", config.optimizer.decay_rate)
    for name in ("learning_rate", "loss_learning_rate"):
        _check(config.optimizer[name] > 0, f"optimizer.{name}", "more than 0", config.optimizer[name])
    for name in ("warmup_epochs", "weight_decay", "clip_norm"):
        _check(config.optimizer[name] >= 0, f"optimizer.{name}", "0 or more", config.optimizer[name])
    _check(
        config.optimizer.decay_epochs >= 1, "optimizer.decay_epochs", "1 or more", config.optimizer.decay_epochs
    )
    _check(config.loss.temperature > 0, "loss.temperature", "more than 0", config.loss.temperature)
    for encoder in ENCODERS:
        chosen = config.loss.layers[encoder]
        fits = set(chosen) <= set(range(1, config.model.num_layers + 1)) and len(set(chosen)) == len(chosen)
        _check(fits, f"loss.layers.{encoder}", f"layers from 1 to {config.model.num_layers}", chosen)
    if config.loss.name == "mtd_layers":
        chosen = sum(len(config.loss.layers[encoder]) for encoder in ENCODERS)
        _check(chosen > 0, "loss.layers", "at least one layer for mtd_layers, for example fusion=(4,)", "none")
    if config.data.pairing == "reference":
        _check(not config.loss.info_nce_weight, "loss.info_nce_weight", "0 with reference pairs", "more")
        _check(
            not config.loss.token_info_nce_weight, "loss.token_info_nce_weight", "0 with reference pairs", "more"
        )
        _check(not config.loss.balance_pairs, "loss.balance_pairs", "False with reference pairs", True)
        _check(config.loss.name not in _OF_GRIDS, "data.pairing", f"grid for {config.loss.name}", "reference")
        relational = config.loss.name in ("kd", "rkd")
        _check(
            not relational or config.batch_size > 1, "batch_size", "2 or more for kd and rkd", config.batch_size
        )
    _check_mesh(config, num_devices, num_processes)


def _check_mesh(config: Config, num_devices: int, num_processes: int) -> None:
    fsdp, there = config.mesh.fsdp, f"the {num_devices} devices here"
    if config.mesh.data == -1:
        _check(fsdp >= 1 and num_devices % fsdp == 0, "mesh.fsdp", f"a divisor of {there}", fsdp)
    else:
        _check(1 <= fsdp <= num_devices, "mesh.fsdp", f"1 to {num_devices}, for {there}", fsdp)
        fits = 1 <= config.mesh.data * fsdp <= num_devices
        _check(
            fits, "mesh.data", f"-1 or 1 to {num_devices // fsdp} with fsdp {fsdp}, for {there}", config.mesh.data
        )
    data, fsdp = mesh_shape(config.mesh, num_devices)
    all_or_one = num_processes == 1 or data * fsdp == num_devices
    _check(all_or_one, "mesh.data", f"-1 with {num_processes} processes: all devices take part", config.mesh.data)
    for name in ("batch_size", "val_batch_size"):
        expected = f"a multiple of the {data * fsdp} devices of the mesh"
        _check(config[name] % (data * fsdp) == 0, name, expected, config[name])


def _check(condition: bool, field: str, expected: str, got: Any) -> None:
    if not condition:
        raise UserError(f"config.{field}: expected {expected}, got {got}")


def load_config(name: str, variant: str) -> Config:
    """`get_config(variant)` of `configs/NAME.py`, which ships with the package.

    The folder is next to the package in a checkout, and inside it once installed.
    """
    package = Path(__file__).parent
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return runpy.run_path(str(folder / f"{name}.py"))["get_config"](variant)


def variant_error(file: str, variant: str, variants: tuple[str, ...]) -> UserError:
    """The error for `--config=FILE:VARIANT` with a variant that the file does not have."""
    return UserError(f"{file}: expected no variant, or one of {', '.join(variants)}, got {variant!r}")
