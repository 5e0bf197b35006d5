"""`deploy_model.py` is the package's own modules, whole, and needs nothing else."""

import ast
import subprocess
import sys

import pytest

from gm_jax.export import bundle


@pytest.fixture(scope="module")
def text():
    return bundle.assemble("tactical")


def test_every_name_is_defined(text, tmp_path):
    path = tmp_path / "deploy_model.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_it_imports_what_a_deployment_has(text):
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "pandas", "torch"}


def test_modules_are_there_word_by_word(text):
    """Every line of a module that imports nothing stands in the file, indented."""
    for name in ("market/price_features.py", "env/account.py", "env/strategic.py"):
        source = (bundle._path("gm_jax.x").parent / name).read_text()
        body = source.split('"""', 2)[2].splitlines()
        lines = [line for line in body if line and "import" not in line][30:]
        block = "\n".join(f"    {line}" for line in lines[:20])
        joined = "\n".join(line for line in text.splitlines() if line.strip())
        assert block in joined


def test_what_a_deployment_lacks_is_refused():
    node = ast.parse("import scipy.stats").body[0]
    with pytest.raises(ImportError, match="cannot import scipy"):
        bundle._needed(node)


def test_it_is_the_same_every_time(text):
    assert bundle.assemble("tactical") == text
    assert "load_strategic_agents" in bundle.assemble("strategic").split('"""')[1]
