"""MTD-JAX on the command line: `python main.py --help` lists the flags, README.md has the recipes."""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mtd_jax import infer_flags, process_flags
from mtd_jax.errors import Interrupted, UserError, error_line, exit_at_once_on_sigterm

MODES = ("demo", "train", "evaluate", "infer", "preprocess", "synthesize")
MODE = flags.DEFINE_enum("mode", "demo", MODES, "What to do. The demo needs no other flag.")
CONFIG = config_flags.DEFINE_config_file("config", None, "train, evaluate: configs/NAME.py, or NAME.py:VARIANT.")
WORKDIR = flags.DEFINE_string("workdir", None, "demo, train: folder for everything that is made. [demo: workdir]")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "evaluate, infer: checkpoint directory, or a training's --workdir."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "synthesize, preprocess: new folder. evaluate: JSON file. [CHECKPOINT/evaluation.json]"
)
LIST = flags.DEFINE_string("list", "test", "evaluate: list of clips, a name in config.data.root or a path.")
SEED = flags.DEFINE_integer("seed", 0, "demo, synthesize: everything random follows from it.")
SECONDS = flags.DEFINE_float("seconds", 4.0, "synthesize: length of a clip.")
CLIPS = {
    name: flags.DEFINE_integer(f"{name}_clips", count, f"synthesize: clips on the list {name}.txt.")
    for name, count in (("train", 200), ("val", 12), ("test", 24))
}
MP4_CLIPS = flags.DEFINE_integer("mp4_clips", 4, "synthesize: clips of the test list to write as .mp4 too.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    # Imported here: JAX takes seconds, and data workers import this file anew.
    if MODE.value == "synthesize":
        from mtd_jax.data.corpus import synthesize

        counts = {f"{name}_clips": flag.value for name, flag in CLIPS.items()}
        mp4_clips = MP4_CLIPS.value if MP4_CLIPS.present else min(MP4_CLIPS.value, CLIPS["test"].value)
        synthesize(needed(OUTPUT), seed=SEED.value, seconds=SECONDS.value, mp4_clips=mp4_clips, **counts)
        return 0
    if MODE.value == "preprocess":
        from mtd_jax.preprocess import preprocess

        summary = preprocess(needed(infer_flags.VIDEOS), needed(OUTPUT), **infer_flags.preprocess_options())
        print("\n".join(summary.lines()))
        return 1 if summary.failed else 0
    from mtd_jax import demo, evaluate, platform, train
    from mtd_jax.distributed import launch

    platform.prepare()
    if MODE.value in ("train", "evaluate"):
        exit_at_once_on_sigterm()
        launch.start(*process_flags.process_options())
    if MODE.value == "demo":
        demo.demo(WORKDIR.value or "workdir", SEED.value)
    elif MODE.value == "train":
        with launch.abort_on_failure():
            train.train(needed(CONFIG), needed(WORKDIR))
    elif MODE.value == "infer":
        from mtd_jax.measure import measure

        return measure(needed(CHECKPOINT), needed(infer_flags.VIDEO), **infer_flags.infer_options())
    else:
        exit_at_once_on_sigterm()  # again: in several processes `start` has installed JAX's handler
        with launch.abort_on_failure():
            evaluate.evaluate_list(needed(CONFIG), needed(CHECKPOINT), LIST.value, OUTPUT.value)
    return 0


def needed(flag):
    if not flag.value:
        raise UserError(f"--mode={MODE.value} needs --{flag.name}")
    return flag.value


def parse(argv):
    """Reads the flags and the config file; whatever is wrong with them becomes a `UserError`."""
    try:
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise UserError(f"expected only flags such as --mode=train, got {' '.join(rest)}")
        if CONFIG.value is not None:
            CONFIG.value.model  # noqa: B018 (a file that cannot be read is reported on first use)
    except (AttributeError, KeyError) as error:
        name = str(error.args[0]).strip("\"'")
        raise UserError(f"--config: there is no field {name!r}; see mtd_jax/config.py for the fields") from error
    except (OSError, TypeError, ValueError, ImportError) as error:
        raise UserError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error


def run(argv) -> int:
    """Runs one command; a user's mistake becomes one line on stderr and exit code 1."""
    app.define_help_flags()
    try:
        parse(argv)
        app.run(main, argv=argv[:1])
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, flags.Error, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except ImportError as error:  # what a remote path needs beside requirements.txt
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv))
