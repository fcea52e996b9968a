"""The design's one-way imports: cluster → pipelines → numina, and inside each from a higher room to a lower one."""

import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from numina.private.library import Library

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "numina": {"pipelines", "cluster", "ray", "diffusers", "transformers", "xfuser", "deepspeed", "av", "omegaconf"},
    "pipelines": {"cluster", "ray", "omegaconf", "pyarrow", "fsspec"},
}
LAZY = {"xfuser", "deepspeed"}  # can't be imported on every machine


# Each room of a package, from the top, and the rooms right below it; what those may import, it may too.
ROOMS: dict[str, dict[str, set[str]]] = {
    "cluster": {
        "cli": {"api", "calibration", "export", "planner", "doctor"},
        "api": {"job", "dataset"},
        "doctor": {"workers"},
        "calibration": {"runtime", "report"},
        "runtime": {"workers", "planner"},
        "workers": {"evaluation", "observability"},
        "report": {"evaluation", "observability"},
        "export": {"evaluation", "observability"},
        "planner": {"job"},
        "evaluation": {"job", "dataset"},
        "observability": {"job", "dataset", "private"},
        "job": {"prompts", "dataset", "private"},
        "prompts": {"storage", "rows", "keys"},
        "dataset": {"storage", "rows", "keys"},
        "storage": set(),
        "rows": set(),
        "keys": set(),
        "private": set(),
    },
    "pipelines": {
        "judges": {"testbed"},
        "testbed": {"sampling"},
        "sampling": {"models"},
        "models": {"attention"},
        "attention": {"checkpoints"},
        "checkpoints": {"video"},
        "video": {"rewriting"},
        "rewriting": {"base"},
        "base": {"parallel"},
        "parallel": {"private"},
        "private": set(),
    },
}


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, names of packages with the name taken from them, and whether at its top."""
    tree = ast.parse(file.read_text())
    at_top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports have no room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node in at_top) for name in names)


def modules() -> dict[str, Path]:
    """All modules of the three packages; a package by the name of its folder."""
    found = {}
    for package in ("numina", "pipelines", "cluster"):
        for file in (ROOT / package).rglob("*.py"):
            found[".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = file
    return found


def own_imports() -> dict[str, set[str]]:
    """Module → the modules of the three packages that it imports, at its top, for types alone or in a function."""
    known = modules()

    def module_of(name: str) -> str | None:
        return next((own for own in (name, name.rpartition(".")[0]) if own in known), None)

    return {
        module: {own for name, _ in imports(file) if (own := module_of(name)) and own != module}
        for module, file in known.items()
    }


def room_of(module: str) -> tuple[str, str]:
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def below(package: str, room: str) -> set[str]:
    """All rooms that a room may import."""
    direct = ROOMS[package][room]
    return direct.union(*(below(package, other) for other in direct))


@pytest.mark.parametrize("package", ["numina", "pipelines", "cluster"])
def test_imports_go_one_way(package: str) -> None:
    """No package imports one above it, nor a library that isn't its own."""
    wrong = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / package).rglob("*.py")
        for name, at_top in ((name.split(".")[0], at_top) for name, at_top in imports(file))
        if name in FORBIDDEN.get(package, set()) or (name in LAZY and at_top)
    }
    assert not wrong


def test_rooms_import_only_rooms_below_them() -> None:
    """The table of rooms holds for every import, also those for types alone; every file is in a room."""
    wrong = []
    for module, others in own_imports().items():
        package, room = room_of(module)
        if package not in ROOMS or not room:
            continue
        assert room in ROOMS[package], f"{module} is in no room of {package}/: {list(ROOMS[package])}"
        allowed = below(package, room) | {room, ""}
        inside = {other: room_of(other)[1] for other in others if room_of(other)[0] == package}
        wrong += [f"{module} imports {other}" for other, its in inside.items() if its not in allowed]
    assert not wrong


def test_no_import_circles() -> None:
    """No module imports, over any number of others, itself."""
    ahead, done = own_imports(), set[str]()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(ahead[module]):
                walk(other, (*path, module))
            done.add(module)

    for module in ahead:
        walk(module, ())


def test_private_names_stay_in_their_module() -> None:
    """A name that begins with an underscore is imported by no other module of ours."""
    wrong = {
        f"{module}: {name}"
        for module, file in modules().items()
        for name, _ in imports(file)
        if name.split(".")[0] in ("numina", "pipelines", "cluster") and name.rpartition(".")[2].startswith("_")
    }
    assert not wrong


TESTED = {  # a library whose private names are used, and the module that alone does
    "torch": "numina.private.torch",
    "diffusers": "pipelines.private.diffusers",
    "transformers": "pipelines.private.transformers",
    "deepspeed": "pipelines.private.deepspeed",
    "xfuser": "pipelines.private.xfuser",
    "ray": "cluster.private.ray",
}
LIBRARIES = {*TESTED, "accelerate", "torchao"}


def private_uses(file: Path) -> Iterator[str]:
    """What a file uses of libraries that begins with an underscore: imports, attributes, and texts that name one."""
    tree = ast.parse(file.read_text())
    for name, _ in imports(file):
        if name.split(".")[0] in LIBRARIES and any(part.startswith("_") for part in name.split(".")):
            yield name
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            own.add(ast.unparse(node.target))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in own and re.fullmatch(r"_(?!_).+", node.attr):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(rf"^(?:{'|'.join(LIBRARIES)})(?:\.\w+)*\._[\w.]+$", node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            yield from re.findall(r"^'_.+'$", ast.unparse(node.args[1]))


def test_private_names_of_libraries_have_one_module_each() -> None:
    """It says which version is needed where one is gone; no other file uses any."""
    uses = {module: list(private_uses(file)) for module, file in modules().items() if ".private." not in module}
    assert {module: found for module, found in uses.items() if found} == {}
    probe = "import torch\nfrom diffusers._x import y\ntorch._z(1)\ngetattr(torch, '_w')\n'ray._private.v'\n"
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(probe)
        file.flush()
        assert {*private_uses(Path(file.name))} == {"diffusers._x.y", "torch._z", "'_w'", "ray._private.v"}


def test_private_names_are_of_versions_that_can_be_installed() -> None:
    """Bounds are those of pyproject.toml, and the locks are within them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = map(Requirement, [*project["dependencies"], *chain(*project["optional-dependencies"].values())])
    bounds = {requirement.name: requirement.specifier for requirement in asked}
    lines = [line for name in ("requirements", "requirements-gpu") for line in (ROOT / f"{name}.lock").open()]
    locked = dict(line.strip().split("==") for line in lines)
    for name, place in TESTED.items():
        assert any(clause.operator in ("<", "==") for clause in bounds[name]), f"{name} has no upper bound"
        if name in locked:
            assert locked[name] in bounds[name]
        if name != "ray":  # texts alone: none is fetched
            library: Library = getattr(import_module(place), name.upper())
            assert (library.name, SpecifierSet(library.tested)) == (name, bounds[name])


@pytest.mark.parametrize("room", sorted(name for name, file in modules().items() if file.name == "__init__.py"))
def test_each_room_says_what_it_is_for(room: str) -> None:
    """In the docstring of its `__init__`."""
    assert ast.get_docstring(ast.parse(modules()[room].read_text()))


def test_no_other_top_level_folders() -> None:
    """The folders are fixed; dot-folders and what a checkout makes for itself are not counted."""
    made = {"out", "build", "dist"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert folders - made <= {"numina", "pipelines", "cluster", "configs", "slurm", "tests"}


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("cluster.cli, cluster.runtime.driver, cluster.planner", {"diffusers", "transformers", "sklearn"}),
        ("cluster.workers.tasks, numina.correct, pipelines.sampling.write", {"diffusers", "transformers", "torch"}),
    ],
    ids=["driver", "task"],
)
def test_only_ranks_load_model_libraries(modules: str, heavy: set[str]) -> None:
    """Planning and resuming start in seconds, and processes that lay out and write, one for each core, are small."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({heavy} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
