"""Breaks the code on purpose, one line at a time, and reports whether the tests notice.

    python -m tests.mutations

Each mutation is made in a temporary copy of the tree, where the test file named beside it must fail. Not part of
the test run: it takes some minutes.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
# The reference values would notice, too, but their networks take a minute to compile.
OPTIONS = ["-x", "-p", "no:cacheprovider", "-k", "not the_reference"]
PASSED, FAILED = 0, 1  # pytest's exit codes; others mean that it could not run


class Mutation(NamedTuple):
    """A mistake: what it is, where it is, and the test file that must fail for it."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


MUTATIONS = [
    Mutation(
        "KL of the student to the teacher, with its sign flipped",
        "mtd_jax/training/losses.py",
        "jnp.where(visible, jnp.exp(teacher) * (teacher - student), 0.0)",
        "jnp.where(visible, jnp.exp(teacher) * (student - teacher), 0.0)",
        "tests/training/test_losses.py",
    ),
    Mutation(
        "no τ² in MTD",
        "mtd_jax/training/losses.py",
        "return temperature**2 * jnp.mean(terms, axis=(1, 2, 3, 4))",
        "return jnp.mean(terms, axis=(1, 2, 3, 4))",
        "tests/training/test_losses.py",
    ),
    Mutation(
        "masked positions take part in the softmax",
        "mtd_jax/training/losses.py",
        "visible = jnp.isfinite(student_logits) & jnp.isfinite(teacher_logits)",
        "visible = jnp.ones(student_logits.shape, bool)",
        "tests/training/test_losses.py",
    ),
    Mutation(
        "InfoNCE over the rows twice: audio is never the query",
        "mtd_jax/training/losses.py",
        "jax.nn.log_softmax(logits, axis=1)",
        "jax.nn.log_softmax(logits, axis=2)",
        "tests/training/test_losses.py",
    ),
    Mutation(
        "audio and video swapped: the shift moves the other one",
        "mtd_jax/scoring.py",
        "audio_window = np.arange(count)[:, None] + np.arange(-max_shift, max_shift + 1)",
        "audio_window = np.arange(count)[:, None] - np.arange(-max_shift, max_shift + 1)",
        "tests/test_scoring.py",
    ),
    Mutation(
        "a window of audio one frame late",
        "mtd_jax/scoring.py",
        "first = np.array([mel_steps(i) for i in range(chunks.encoded)])",
        "first = np.array([mel_steps(i + 1) for i in range(chunks.encoded)])",
        "tests/test_scoring.py",
    ),
    Mutation(
        "a pair out of sync may be the pair in sync",
        "mtd_jax/data/sampling.py",
        "others = others[others != start]",
        "others = others[others >= 0]",
        "tests/data/test_sampling.py",
    ),
    Mutation(
        "windows of a grid one frame closer than allowed",
        "mtd_jax/data/sampling.py",
        "first = picks[-1] + min_gap",
        "first = picks[-1] + min_gap - 1",
        "tests/data/test_sampling.py",
    ),
    Mutation(
        "the neighbour of the best offset is its rival (≥ for >)",
        "mtd_jax/sync/evidence.py",
        "if abs(rival - best) > TOLERANCE",
        "if abs(rival - best) >= TOLERANCE",
        "tests/sync/test_evidence.py",
    ),
    Mutation(
        "median for mean in the lead over a rival",
        "mtd_jax/sync/evidence.py",
        "lead.mean() / error",
        "np.median(lead) / error",
        "tests/sync/test_evidence.py",
    ),
]


def main() -> int:
    for mutation in MUTATIONS:
        found = (ROOT / mutation.file).read_text().count(mutation.right)
        if found != 1:
            sys.exit(f"{mutation.file}: expected {mutation.right!r} once, found it {found} times; mend the table")
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "workdir"))
        for tests in sorted({mutation.tests for mutation in MUTATIONS}):
            if _run(copy, tests) != PASSED:
                sys.exit(f"{tests} fails without any mutation")
        survivors = [mutation for mutation in MUTATIONS if not _killed(copy, mutation)]
    print(f"{len(MUTATIONS) - len(survivors)} of {len(MUTATIONS)} killed")
    return 1 if survivors else 0


def _killed(copy: pathlib.Path, mutation: Mutation) -> bool:
    path = copy / mutation.file
    original = path.read_text()
    path.write_text(original.replace(mutation.right, mutation.wrong))
    code = _run(copy, mutation.tests)
    path.write_text(original)
    if code not in (PASSED, FAILED):
        sys.exit(f"{mutation.tests} did not run: pytest ended with {code} ({mutation.name})")
    print(f"{'killed' if code == FAILED else 'SURVIVED'}: {mutation.file}: {mutation.name}", flush=True)
    return code == FAILED


def _run(copy: pathlib.Path, tests: str) -> int:
    # -B: a bytecode file would also be taken for a version of the same size and second.
    command = [sys.executable, "-B", "-m", "pytest", *OPTIONS, tests]
    return subprocess.run(command, cwd=copy, stdout=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
