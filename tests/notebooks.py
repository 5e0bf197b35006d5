"""Run the notebooks: for their tests, and to keep their outputs.

`python -m tests.notebooks [NAME …]` runs each from its .py as it stands, and writes its .ipynb.
"""

from __future__ import annotations

import os
import sys
import tempfile
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from PIL import Image


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.py")))
PATIENCE = 3_600  # seconds a cell


class OwnKernels(AsyncKernelManager):
    """Starts kernels of this very Python, whatever is registered on the machine."""

    def _kernel_spec_manager_default(self):
        return KernelSpecManager(kernel_dirs=[])


def written(name):
    """Return a notebook as its .py says it."""
    return jupytext.read(FOLDER / f"{name}.py")


def parameters(notebook):
    """Return the index of the cell that a user changes."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    (found,) = [index for index, own in enumerate(tags) if "parameters" in own]
    return found


def changed(notebook, **values):
    """Give parameters other values, in a cell behind theirs."""
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(parameters(notebook) + 1, nbformat.v4.new_code_cell(source))
    return notebook


def execute(notebook, folder, **environment):
    """Run a notebook top to bottom in a fresh kernel, with this gm_jax, within a folder."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        kernel_manager_class=OwnKernels,
        coalesce_streams=True,  # and of a progress bar only its last state
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment})
    return notebook


def outputs(notebook, kind=None):
    """Return all outputs of a notebook, those that hold a MIME type if one is given."""
    found = [output for cell in code(notebook) for output in cell.outputs]
    return [x for x in found if kind is None or kind in x.get("data", {})]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook):
    """Return what a notebook has printed."""
    return "".join(x.text for x in outputs(notebook) if x.output_type == "stream")


def small(picture):
    """Return a picture, PNG in base 64, in 128 colours: a third of its size, and looks the same."""
    content = BytesIO()
    found = Image.open(BytesIO(b64decode(picture)))
    if found.mode == "P":
        return picture
    few = found.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(content, "PNG", optimize=True)
    return b64encode(content.getvalue()).decode()


def kept(notebook):
    """Return an executed notebook without what changes from run to run or machine to machine."""
    notebook = nbformat.from_dict(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata |= {"accelerator": "GPU", "colab": {"provenance": []}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    nbformat.validate(notebook)
    return notebook


def main(names):
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook = kept(execute(written(name), folder))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
