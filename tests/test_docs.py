"""The documentation: its commands parse, many run, its flags and fields exist, its Python code runs."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from converters import flax_to_torch, torch_to_flax
from mtd_jax import cli
from mtd_jax.checkpoint import save_model
from mtd_jax.config import default_config
from mtd_jax.data import tfds_builder
from mtd_jax.errors import parse_flags
from mtd_jax.export import export
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.video.write import write_mp4
from tests.helpers.cli import ROOT
from tests.helpers.configs import STUDENT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {module.__name__: module for module in (torch_to_flax, flax_to_torch, tfds_builder)}
FIELDS = default_config(ModelConfig.tiny())
FLAGS = set(cli.CommandLine(["main.py"])) | {flag for module in MODULES.values() for flag in module._FLAGS}
FLAGS |= set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (ROOT / "experiments/run.py").read_text()))


def blocks(text, *languages):
    return [body for name, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M) if name in languages]


def code_spans(text):
    """Code within sentences and tables; a line break in it is a space."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"(?sm)^```.*?^```", "", text))]


def shell_lines(text):
    """Of all blocks for a shell; of a console, what is typed."""
    for block in blocks(text, "bash", "console"):
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from typed or lines
    yield from (span for span in code_spans(text) if span.startswith("python "))


def commands(line):
    """[(program, arguments)] of this project in a line for a shell; "…" stands for arguments left out."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found, arguments = [], None
    words = list(words)
    for i, word in enumerate(words):
        if word == "main.py" or (
            words[i - 1] == "-m" and word.split(".")[0] in ("converters", "mtd_jax", "benchmarks", "experiments")
        ):
            arguments = []
            found.append((word, arguments))
        elif set(word) <= set(";&|<>()"):
            arguments = None
        elif "python " in word:  # a command for another shell
            found += commands(word)
        elif arguments is not None and word != "…":
            arguments.append(word)
    return found


def all_commands(path):
    return [command for line in shell_lines(path.read_text()) for command in commands(line)]


def parse(program, arguments):
    """Raises `UserError` if the program would refuse its flags."""
    if program == "main.py":
        cli.CommandLine([program, *arguments]).parse([program, *arguments])
    elif program in MODULES:
        flags = MODULES[program]._FLAGS
        flags.unparse_flags()
        parse_flags(flags, [program, *arguments])
    else:
        spec = importlib.util.find_spec(program)
        assert spec is not None, program
        source = pathlib.Path(spec.origin).read_text()
        for name in flag_names(" ".join(arguments)):
            assert re.search(rf'flags\.DEFINE_\w+\(\s*"{name}"', source), f"{program} has no --{name}"


def flag_names(text):
    return re.findall(r"(?<!\S)--([\w.]+)", text)


def exists(name):
    """Whether a command of the documentation may have this flag; of a config field also a group of fields."""
    if not name.startswith("config."):
        return name in FLAGS
    field = FIELDS
    for part in name.split(".")[1:]:
        if part not in field:
            return part.isupper()  # a placeholder: FIELD
        field = field[part]
    return True


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for program, arguments in all_commands(path):
        parse(program, arguments)
    for config in (ROOT / "configs").glob("*.py"):
        for line in re.findall(r"python main\.py .*", re.sub(r"\\+\n", " ", config.read_text())):
            parse("main.py", commands(line)[0][1])


def test_commands_are_found_wherever_they_are():
    """Else nothing would be tested."""
    count = {path.name: len(all_commands(path)) for path in DOCUMENTS}
    assert count["README.md"] >= 6 and count["video.md"] >= 7 and count["training.md"] >= 6
    assert count["data.md"] >= 7 and count["multi-host.md"] >= 8  # one of them in quotes, for another machine
    line = (
        'FOO=1 srun -n 2 python main.py --mode=train … && ssh X --command="cd a; python -m converters.x --a=b" > y'
    )
    assert commands(line) == [("main.py", ["--mode=train"]), ("converters.x", ["--a=b"])]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_flags_and_fields_exist(path):
    text = path.read_text()
    bare = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith("--")]
    named = [name for span in [*code_spans(text), *bare] if span.startswith("--") for name in flag_names(span)]
    for table in re.findall(r"^\| field \| default \|.*?\n(?=\n)", text, re.S | re.M):
        for row in table.splitlines()[2:]:
            for field in re.findall(r"`([\w.*]+)`", row.split("|")[1]):
                group = named[-1].rpartition(".")[0] if field.startswith(".") else "config."
                named.append((group + field).removesuffix(".*"))
    assert [name for name in named if not exists(name)] == []


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the files that the documentation names exist, small."""
    folder = tmp_path_factory.mktemp("documented")
    save_model(folder / "student", SyncModel(STUDENT, seed=0))
    for copy in ("released_student", "workdir/student_mtd"):
        shutil.copytree(folder / "student", folder / copy)
    talk = record(0, 3, 0, 1.6)
    write_mp4(folder / "talk.mp4", portrait(talk)[0], talk.waveform)
    export(None, folder / "exported")
    (folder / "FOLDER").mkdir()
    for copy in ("workdir/shifted.mp4", "FOLDER/talk.mp4"):
        shutil.copy(folder / "talk.mp4", folder / copy)
    return folder


def test_commands_for_videos_and_back_to_pytorch_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    ran = 0
    for program, arguments in (command for path in DOCUMENTS for command in all_commands(path)):
        if "--mode=infer" in arguments and "--live" not in arguments:
            forced = (
                ["--force"] if any(word.startswith("--fix=") for word in arguments) else []
            )  # it knows nothing
            assert cli.run([program, *arguments, "--faces=whole", *forced]) == 0, capsys.readouterr().err
        elif program == "converters.flax_to_torch":
            assert flax_to_torch.main([program, *arguments]) == 0, capsys.readouterr().err
        else:
            continue
        ran += 1
    assert ran >= 8
    for name in ("fixed.mp4", "talk.html", "student.pth"):
        assert (place / name).stat().st_size > 1000


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if blocks(path.read_text(), "python")], ids=lambda p: p.name
)
def test_python_code_runs(path, place, monkeypatch):
    monkeypatch.chdir(place)
    rng = np.random.default_rng(0)
    given = {
        "windows": rng.integers(0, 256, (2, 5, 48, 96, 3), dtype=np.uint8),
        "audio_chunks": rng.uniform(-1, 1, (2, 5 * 640)).astype(np.float32),
        "frames": rng.integers(0, 256, (12, 48, 96, 3), dtype=np.uint8),
        "waveform": np.zeros(12 * 640, np.int16),
    }
    for block in blocks(path.read_text(), "python"):
        exec(compile(block, path.name, "exec"), dict(given))
