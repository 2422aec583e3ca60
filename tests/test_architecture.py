"""The layout of the package: a room imports only from the rooms below it (docs/architecture.md)."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "mtd_jax"
# From top to bottom. Rooms on one line don't import each other, except those at the very bottom.
LEVELS = [
    {"cli"},
    {"demo"},
    {"sync"},
    {"evaluation", "export", "guidance", "preprocess"},
    {"scoring"},
    {"training"},
    {"faces"},
    {"synthetic"},
    {"video"},
    {"config"},
    {"models"},
    {"box", "released"},
    {"checkpoint"},
    {"data"},
    {"network"},
    {"distributed"},
    {"errors", "storage", "workers", "compilation", "download"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def imported_rooms(path):
    """Rooms that a file imports from, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("mtd_jax."))


def test_a_room_imports_only_from_rooms_below_it():
    wrong = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):  # the public names, from anywhere
            continue
        for room in imported_rooms(path):
            beside = room == parts[0] or LEVEL[room] == LEVEL[parts[0]] == len(LEVELS) - 1
            if not beside and LEVEL[room] <= LEVEL[parts[0]]:
                wrong.add(f"{'/'.join(parts)}.py imports mtd_jax.{room}")
    assert not wrong, "\n".join(sorted(wrong))


def test_every_room_has_its_place_and_says_what_it_is_for():
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} <= (
        LEVEL.keys() | {"__init__", "__pycache__", "assets"}
    )
    for path in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
