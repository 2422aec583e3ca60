"""The command line: `python main.py` in a checkout, `mtd-jax` once installed.

Every flag names the modes it belongs to; given with another mode it is an error, not ignored. Modes import what
they need when they start: JAX takes seconds to import, and data workers import the main module again.
"""

import functools
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from mtd_jax.errors import UserError, exit_at_once_on_sigterm, exit_code, parse_flags

MODES = {
    "demo": "the whole story on synthetic talking faces: make data, train, distil, evaluate, measure a video",
    "train": "train or distil a model: --config, --workdir",
    "store_scores": "a teacher's scores of all training draws, for losses of logits: --config, --output",
    "evaluate": "accuracy by context over a list of clips: --config, --checkpoint",
    "infer": "measure the audio-video offset of a video: --video",
    "preprocess": "find faces in videos and write training clips: --videos, --output",
    "synthesize": "write synthetic talking faces: --output",
    "score": "a sync score of generated videos, with intervals: --videos",
    "export": "write a model as ONNX and StableHLO: --output",
    "app": "a page in the browser: drop a video, get the verdict and a fixed copy",
}


_STRING, _INTEGER, _BOOLEAN, _FLOAT = (
    flags.DEFINE_string,
    flags.DEFINE_integer,
    flags.DEFINE_boolean,
    flags.DEFINE_float,
)
# (kind, name, default, the modes it belongs to, help)
_FLAGS: tuple[tuple[Callable, str, Any, str, str], ...] = (
    (_STRING, "workdir", None, "demo train", "folder for everything that is made. [demo: workdir]"),
    (_INTEGER, "seed", 0, "demo synthesize", "everything random follows from it."),
    (
        _STRING,
        "checkpoint",
        None,
        "evaluate infer score export app",
        "checkpoint directory, --workdir of a training, .pth file or its address. [the included model]",
    ),
    (
        _STRING,
        "output",
        None,
        "evaluate preprocess synthesize store_scores export",
        "new folder; evaluate: JSON file to write.",
    ),
    (_STRING, "list", "test", "evaluate", "list of clips: a name in config.data.root, or a path."),
    (
        _STRING,
        "coordinator",
        None,
        "train evaluate",
        "HOST:PORT of process 0 of several, or auto: SLURM, pods.",
    ),
    (_INTEGER, "num_processes", None, "train evaluate", "how many processes there are."),
    (_INTEGER, "process_id", None, "train evaluate", "which of them this one is, counted from 0."),
    (
        _STRING,
        "video",
        None,
        "infer export",
        "a video file; infer: or a folder; with --live an address, a pipe, or - for the standard input; export: "
        "to compare results on.",
    ),
    (
        _STRING,
        "faces",
        "mtcnn",
        "infer preprocess score",
        "mtcnn, or whole: each frame is cropped to the face already.",
    ),
    (_STRING, "boxes", None, "infer", "JSON file of your own face boxes, instead of --faces."),
    (_INTEGER, "max_shift", 15, "infer", "the largest offset to look for, in frames of 40 ms, 2 to 125."),
    (_BOOLEAN, "json", False, "infer score", "print JSON, of infer an object per video."),
    (_STRING, "report", None, "infer score", "HTML page to write."),
    (_STRING, "host", "127.0.0.1", "app", "address to listen on; others than this let the network in."),
    (_INTEGER, "port", 7860, "app", "port to listen on."),
    (_STRING, "references", None, "score", "folder of real videos of the same names, to compare with."),
    (_STRING, "fix", None, "infer", "copy to write, with the audio in sync; of a folder, a folder for copies."),
    (_STRING, "fix_tracks", "all", "infer", "audio streams that --fix moves: all, or only the measured one."),
    (_BOOLEAN, "force", False, "infer", "write --fix even if the offset is a guess."),
    (_BOOLEAN, "thorough", False, "infer", "score every window of the whole film, instead of samples."),
    (_INTEGER, "max_faces", 6, "infer", "of faces seen at the same time, score the so many largest."),
    (_STRING, "audio_track", None, "infer", "number, from 1, or language of the audio stream to measure."),
    (_STRING, "audio", None, "infer", "another file whose audio to measure, taken to start with the video."),
    (_BOOLEAN, "live", False, "infer", "of a stream: a JSON line per second about its last seconds."),
    (_FLOAT, "live_seconds", 10.0, "infer", "how many seconds each of these lines is about, 2 to 60."),
    (_STRING, "standard", None, "infer", "judge by published tolerances: atsc, ebu or itu."),
    (
        _INTEGER,
        "filter_max_offset",
        None,
        "infer",
        "print only videos whose offset is sure and at most this.",
    ),
    (_STRING, "videos", None, "preprocess score", "folder of videos, or a text file that lists them."),
    (_STRING, "list_name", "train", "preprocess", "list to add the clips to: train, val, test, pretrain."),
    (_BOOLEAN, "all_faces", False, "preprocess", "also keep faces smaller than another one: mostly listeners."),
    (_INTEGER, "workers", None, "preprocess", "videos at a time. [one per CPU core]"),
    (_FLOAT, "seconds", 4.0, "synthesize", "length of a clip."),
    (_INTEGER, "train_clips", 200, "synthesize", "clips on the list train.txt."),
    (_INTEGER, "val_clips", 12, "synthesize", "clips on the list val.txt."),
    (_INTEGER, "test_clips", 24, "synthesize", "clips on the list test.txt."),
    (
        flags.DEFINE_list,
        "variety",
        None,
        "synthesize",
        "how much speakers differ: NAME=FACTOR, such as beard=0,pose=2.",
    ),
    (_INTEGER, "mp4_clips", 4, "synthesize", "clips of the test list to write as .mp4, too."),
)
_MODES_OF = {name: modes.split() for _, name, _, modes, _ in _FLAGS} | {
    "config": ["train", "evaluate", "store_scores"]
}


class CommandLine(flags.FlagValues):
    """The flags of one command line."""

    def __init__(self, argv: list[str]):
        super().__init__()
        flags.DEFINE_enum("mode", "demo", list(MODES), "what to do; see above.", flag_values=self)
        about = "configs/NAME.py, or configs/NAME.py:VARIANT; --config.FIELD=VALUE changes a field."
        config_flags.DEFINE_config_file("config", None, about, flag_values=self, sys_argv=argv)
        for define, name, default, _, about in _FLAGS:
            define(name, default, about, flag_values=self)

    def parse(self, argv: list[str]) -> None:
        """Reads the flags and the config file; whatever is wrong with them is a `UserError`."""
        try:
            parse_flags(self, argv)
            if self.config is not None:
                _ = self.config.model  # a config file that cannot be read is reported on first use
        except UserError:
            raise
        except (AttributeError, KeyError) as error:
            name = str(error.args[0]).strip("\"'")
            raise UserError(
                f"--config: there is no field {name!r}; see mtd_jax/config.py for the fields"
            ) from error
        except (OSError, TypeError, ValueError, ImportError) as error:
            raise UserError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error
        for name, modes in _MODES_OF.items():
            if self[name].present and self.mode not in modes:
                raise UserError(f"--{name} belongs to --mode={' or '.join(modes)}, got --mode={self.mode}")

    def needed(self, name: str) -> Any:
        """The value of a flag that this mode cannot do without."""
        if not self[name].value:
            raise UserError(f"--mode={self.mode} needs --{name}")
        return self[name].value


def help_text(argv: list[str]) -> str:
    """The modes and all flags, or, with --mode in `argv`, the flags of that mode."""
    values = CommandLine(argv)
    modes = [word.removeprefix("--mode=") for word in argv if word.startswith("--mode=")]
    lines = [f"  --mode={mode:<14}{about}" for mode, about in MODES.items() if not modes or mode in modes]
    for name, belongs in _MODES_OF.items():
        if not modes or set(modes) & set(belongs):
            default = "" if values[name].default in (None, False) else f" [{values[name].default}]"
            where = "" if modes else f"{', '.join(belongs)}: "
            lines.append(f"  --{name:<19}{where}{values[name].help}{default}")
    return "\n".join([f"{__doc__}".splitlines()[0], *lines])


def run(argv: list[str] | None = None) -> int:
    """Runs one command, by default the process's own, and returns its exit code."""
    argv = _with_config_path(sys.argv if argv is None else argv)
    if {"--help", "-h"} & set(argv):
        print(help_text(argv))
        return 0
    return exit_code(lambda: _dispatch(argv))


def main():
    """The installed command."""
    sys.exit(run())


def _dispatch(argv: list[str]) -> int | None:
    values = CommandLine(argv)
    values.parse(argv)
    _quiet_libraries()
    return _COMMANDS[values.mode](values)


def _quiet_libraries() -> None:
    """Sets log levels for the whole process, which only a command may do.

    A checkpoint that cannot be written is one line. Orbax abandons the other arrays, and asyncio would log a
    traceback for each of those hundreds when the process ends, after that line.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _demo(values: CommandLine):
    from mtd_jax import compilation, demo

    compilation.prepare()
    demo.demo(values.workdir or "workdir", values.seed)


def _train(values: CommandLine):
    config, workdir = values.needed("config"), values.needed("workdir")
    from mtd_jax.distributed import launch
    from mtd_jax.training.train import train

    _join(values)
    with launch.abort_on_failure():
        train(config, workdir, report=functools.partial(print, flush=True))  # a log file shows progress, too


def _store_scores(values: CommandLine):
    config, output = values.needed("config"), values.needed("output")
    from mtd_jax import compilation
    from mtd_jax.training.store_scores import store_scores

    compilation.prepare()
    store_scores(config, output, report=functools.partial(print, flush=True))


def _evaluate(values: CommandLine):
    config = values.needed("config")
    from mtd_jax.distributed import launch
    from mtd_jax.evaluation.evaluate import evaluate_list

    _join(values)
    exit_at_once_on_sigterm()  # again: in several processes joining has installed JAX's handler
    with launch.abort_on_failure():
        evaluate_list(config, values.checkpoint, values.list, values.output)


def _join(values: CommandLine) -> None:
    """Joins the other processes of this run, if there are any."""
    from mtd_jax import compilation
    from mtd_jax.distributed import launch

    compilation.prepare()
    exit_at_once_on_sigterm()  # until there is something to save
    launch.start(values.coordinator, values.num_processes, values.process_id)


def _infer(values: CommandLine) -> int:
    video = values.needed("video")
    if values["checkpoint"].present and not values.checkpoint:
        raise UserError("--checkpoint: expected a directory, a .pth file or its address, got nothing")
    if values.boxes and values["faces"].present:
        raise UserError("--boxes and --faces exclude each other: boxes of your own need no detector")
    from mtd_jax import compilation

    compilation.prepare()
    if values.live:
        return _infer_live(values)
    if values["live_seconds"].present:
        raise UserError("--live_seconds is about streams: it needs --live")
    from mtd_jax.sync.command import measure

    return measure(
        values.checkpoint,
        video,
        faces=values.boxes or values.faces,
        max_shift=values.max_shift,
        thorough=values.thorough,
        max_faces=values.max_faces,
        audio_track=values.audio_track,
        audio=values.audio,
        standard=values.standard,
        force=values.force,
        as_json=values.json,
        report=values.report,
        fix=values.fix,
        fix_tracks=values.fix_tracks,
        filter_max_offset=values.filter_max_offset,
    )


def _infer_live(values: CommandLine) -> int:
    from mtd_jax.sync.live import live

    of_files = (
        "json",
        "report",
        "fix",
        "fix_tracks",
        "force",
        "thorough",
        "audio",
        "standard",
        "filter_max_offset",
    )
    for name in of_files:
        if values[name].present:
            raise UserError(f"--{name} does not go with --live, which prints a JSON line per second")
    return live(
        values.checkpoint,
        values.video,
        seconds=values.live_seconds,
        faces=values.boxes or values.faces,
        max_shift=values.max_shift,
        max_faces=values.max_faces,
        audio_track=values.audio_track,
        report=functools.partial(print, flush=True),
    )


def _preprocess(values: CommandLine) -> int:
    videos, output = values.needed("videos"), values.needed("output")
    from mtd_jax.preprocess.command import preprocess

    summary = preprocess(
        videos,
        output,
        faces=values.faces,
        list_name=values.list_name,
        all_faces=values.all_faces,
        workers=values.workers,
    )
    print("\n".join(summary.lines()))
    return 1 if summary.failed else 0


def _synthesize(values: CommandLine):
    output = values.needed("output")
    from mtd_jax.synthetic.corpus import synthesize
    from mtd_jax.synthetic.variety import Variety

    synthesize(
        output,
        seed=values.seed,
        seconds=values.seconds,
        train_clips=values.train_clips,
        val_clips=values.val_clips,
        test_clips=values.test_clips,
        variety=Variety.parse(values.variety or []),
        mp4_clips=values.mp4_clips if values["mp4_clips"].present else min(values.mp4_clips, values.test_clips),
    )


def _score(values: CommandLine) -> int:
    videos = values.needed("videos")
    from mtd_jax import compilation
    from mtd_jax.sync.score_command import score

    compilation.prepare()
    return score(
        values.checkpoint,
        videos,
        values.references,
        faces=values.faces,
        as_json=values.json,
        report=values.report,
    )


def _app(values: CommandLine):
    if not 0 < values.port < 65536:
        raise UserError(f"--port: expected 1 to 65535, got {values.port}")
    try:
        socket.create_server((values.host, values.port)).close()
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        address = f"{values.host}:{values.port}"
        raise UserError(f"cannot listen at {address} ({why}): name another --port or --host") from error
    from mtd_jax import compilation
    from mtd_jax.sync.app import app

    compilation.prepare()
    app(values.checkpoint, values.host, values.port)
    sys.stderr.flush()
    os._exit(0)  # threads that still compute for a visitor would crash in an orderly exit


def _export(values: CommandLine):
    output = values.needed("output")
    from mtd_jax import compilation
    from mtd_jax.export import export

    compilation.prepare()
    export(values.checkpoint, output, values.video)


_COMMANDS: dict[str, Callable[[CommandLine], int | None]] = {
    "demo": _demo,
    "train": _train,
    "store_scores": _store_scores,
    "evaluate": _evaluate,
    "infer": _infer,
    "preprocess": _preprocess,
    "synthesize": _synthesize,
    "score": _score,
    "export": _export,
    "app": _app,
}


def _with_config_path(argv: list[str]) -> list[str]:
    """Lets `--config=configs/NAME.py` work outside a checkout, with the configs installed with the package."""
    return [_installed_config(word) if word.startswith("--config=configs/") else word for word in argv]


def _installed_config(word: str) -> str:
    path, *variant = word.removeprefix("--config=").split(":", 1)
    installed = Path(__file__).parent / path
    if Path(path).exists() or not installed.exists():
        return word
    return ":".join([f"--config={installed}", *variant])
