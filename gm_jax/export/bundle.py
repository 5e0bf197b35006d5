"""Assemble `deploy_model.py`: the package's own modules in one file that needs no JAX.

A module becomes a function of the same body that returns its names; what it imports from another
module of the package is read from that one's result; `jax.numpy` and `flax.struct` are read from
`deploy/standin.py`. Nothing is written twice, and nothing is renamed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import textwrap
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import gm_jax


ENTRY = "gm_jax.deploy.program"
STANDIN = "gm_jax.deploy.standin"
FOREIGN = ("jax", "flax")  # packages that the stand-in stands in for
ALLOWED = ("numpy", "pandas", "torch")  # beside the standard library

HEAD = '''"""Run a trained gm_jax team without JAX: torch, numpy and pandas suffice.

    python deploy_model.py --data bars.csv --out ledger.csv     over a file, a row per bar
    python deploy_model.py --data bars.csv --follow             and on as the file grows

    from deploy_model import TradingEnvironment
    env = TradingEnvironment()
    env.load_{system}_agents("best_{system}_model.pth")
    actions = env.get_{system}_actions(frame)                   # a frame of all bars so far

Assembled by gm_jax {version} from its own modules, each a function below that returns its names.
{contents}
"""

from __future__ import annotations

from types import SimpleNamespace


def module(body):
    """Turn a function that returns its names into a namespace."""
    return SimpleNamespace(**body())
'''

TAIL = """

TradingEnvironment = deploy_trading_env.TradingEnvironment
UserError = errors.UserError

if __name__ == "__main__":
    raise SystemExit(deploy_program.main())
"""


def assemble(system: str) -> str:
    """Return the text of `deploy_model.py`; `system` is named in its examples."""
    sources = {name: _source(name) for name in _order()}
    contents = "\n".join(
        f"  {_variable(name):<22}{(ast.get_docstring(ast.parse(text)) or name).splitlines()[0]}"
        for name, text in sources.items()
    )
    head = HEAD.format(system=system, version=version("gm-jax"), contents=contents)
    return head + "".join(_section(name, text) for name, text in sources.items()) + TAIL


@cache
def deployed() -> ModuleType:
    """Return `deploy_model.py` as a module of this process."""
    name = "gm_jax.deploy_model"
    loaded = importlib.util.module_from_spec(ModuleSpec(name, loader=None))
    sys.modules[name] = loaded
    exec(compile(assemble("tactical"), "deploy_model.py", "exec"), loaded.__dict__)
    return loaded


def _order() -> list[str]:
    """Return the modules that the program needs, each after those it imports."""
    found: list[str] = []

    def visit(name: str) -> None:
        for node in _imports(ast.parse(_source(name))):
            for needed in _needed(node):
                if needed not in found:
                    visit(needed)
        if name not in found:
            found.append(name)

    visit(ENTRY)
    return found


def _imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


def _needed(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the modules of the package that an import needs.

    Raises:
        ImportError: it needs what a deployed model does not have.
    """
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif (node.module or "").startswith("gm_jax"):
        return [_owner(node, alias.name)[0] for alias in node.names]
    else:
        names = [node.module or ""]
    needed = []
    for name in names:
        package = name.split(".")[0]
        if package in FOREIGN:
            needed.append(STANDIN)
        elif package not in (*ALLOWED, *sys.stdlib_module_names):
            raise ImportError(f"a deployed model cannot import {name}")
    return needed


def _owner(node: ast.ImportFrom, name: str) -> tuple[str, str | None]:
    """Return the module that a `from … import name` reads, and which of its names; None: itself."""
    inner = f"{node.module}.{name}"
    if _path(inner).exists():
        return inner, None
    return str(node.module), name


def _section(name: str, text: str) -> str:
    """Return a module as a function."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        first, end = node.lineno - 1, node.end_lineno
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[first:end] = _rewritten(node, lines[first:end])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names = [alias.name for inner in node.body for alias in inner.names]  # type: ignore[attr-defined]
            lines[first:end] = [f"{name} = object  # a type of the trainer" for name in names]
    body = textwrap.indent("\n".join(lines).strip("\n"), "    ", lambda line: bool(line.strip()))
    return f"\n\n@module\ndef {_variable(name)}():\n{body}\n\n    return locals()\n"


def _rewritten(node: ast.Import | ast.ImportFrom, lines: list[str]) -> list[str]:
    """Return an import as lines that read from the modules above."""
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return []
    if isinstance(node, ast.ImportFrom) and node.module == "typing":
        names = [alias.name for alias in node.names if alias.name != "TYPE_CHECKING"]
        return [f"from typing import {', '.join(names)}"] if names else []
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gm_jax"):
        return [_bound(node, alias) for alias in node.names]
    if not _needed(node):
        return lines
    return [f"{alias.asname or alias.name} = {_variable(STANDIN)}" for alias in node.names]


def _bound(node: ast.ImportFrom, alias: ast.alias) -> str:
    owner, name = _owner(node, alias.name)
    source = _variable(owner) if name is None else f"{_variable(owner)}.{name}"
    return f"{alias.asname or alias.name} = {source}"


def _variable(name: str) -> str:
    return name.removeprefix("gm_jax.").replace(".", "_")


def _path(name: str) -> Path:
    return Path(gm_jax.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")


def _source(name: str) -> str:
    return _path(name).read_text()
