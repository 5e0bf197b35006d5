"""The repository itself: its files, its pins, its layers."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gm_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TOP_LEVEL = (
    *("gm_jax", "configs", "data", "notebooks", "tests", "exports", "benchmarks/README.md"),
    *("pyproject.toml", "constraints.txt", ".ci/run", ".gitignore", ".pre-commit-config.yaml"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"),
    *("data/README.md", "exports/README.md", "configs/training_config.yaml"),
)

# Bottom first. A module imports its own layer and those before it; what is not named here (run,
# bench, doctor, cli and its parts, the package's face) stands on top of all.
LAYERS = ("errors", "settings", "config", "market", "env", "systems", "mappo", "report")
WITHOUT_JAX = (
    "errors",
    "settings",
    "config",
    "market",
)  # host code: an export carries part of it along
JAX = {"jax", "jaxlib", "flax", "optax", "chex", "orbax"}

MACHINE_PATH = re.compile(r"(?<![\w.~}*/-])/(?:work|root|home|Users|tmp)/[\w.-]")


# files


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_exists(name):
    path = ROOT / name
    assert path.is_file() or any(path.glob("*"))  # git keeps no empty folder


def test_readme_has_no_gap():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@", readme)
    assert "gm-jax train tactical --preset quick" in readme
    assert "pip install -c constraints.txt -e '.[dev]'" in readme


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_no_file_names_a_machine_path():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.split("\0") if (ROOT / name).is_file()]
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in files
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["work", "root", "home", "tmp"])
def test_machine_paths_are_recognised(folder):
    assert MACHINE_PATH.search(f'open("/{folder}/v/bars.csv")')
    assert not MACHINE_PATH.search(
        f"https://example.org/{folder}/x and ../{folder}/x and {folder}/x"
    )


# pins


def canonical(requirement):
    name = re.match(r"[\w.-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_dependency():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not loose
    pinned = [canonical(line) for line in lines]
    assert len(set(pinned)) == len(pinned)
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["dev"] + extras["export"] + extras["tensorboard"]
    assert {canonical(r) for r in wanted} - {"gm-jax"} <= set(pinned)
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))]


# layers


def imports(path):
    """Yield (line, dotted name) of everything a module imports, wherever in the module."""
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = here[: len(here) - node.level] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def layer(parts):
    """Return the layer of a path or dotted name below the package, split into parts."""
    return LAYERS.index(parts[0]) if parts and parts[0] in LAYERS else len(LAYERS)


def upward(path):
    own = layer(path.relative_to(PACKAGE).with_suffix("").parts)
    for line, name in imports(path):
        first, *rest = name.split(".")
        if first == PACKAGE.name and layer(rest) > own:
            yield f"{path.relative_to(ROOT)}:{line} imports {name}"


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_layer_exists():
    assert set(LAYERS) <= {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in MODULES}


def test_imports_go_downwards():
    found = [line for path in MODULES for line in upward(path)]
    assert not found, "\n".join(found)


def test_host_code_does_not_import_jax():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        if path.relative_to(PACKAGE).with_suffix("").parts[0] in WITHOUT_JAX
        for line, name in imports(path)
        if name.split(".")[0] in JAX
    ]
    assert not found, "\n".join(found)
