"""The notebooks: pairs that agree, outputs of a real run, and top to bottom in a fresh kernel."""

import base64
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import jupytext
import pytest
from nbformat.v4 import new_code_cell

from gm_jax import doctor
from gm_jax.export import package
from gm_jax.market.synthetic import generate
from gm_jax.market.writing import write_csv
from gm_jax.run import sweep
from gm_jax.systems import TACTICAL
from tests import notebooks
from tests.conftest import HASTE
from tests.notebooks import FOLDER, NAMES, changed, code, execute, outputs, text, written
from tests.test_repository import MACHINE_PATH


CPU = {"kind": "cpu", "platform": "cpu", "memory_bytes": None}  # what JAX sees
LARGEST = 1_000_000  # bytes of a notebook with its outputs
PICTURE = "image/png"
TRAININGS = ("strategic_mappo_training", "tactical_mappo_training")
BARS = 8_192
SMALL = {
    **{"num_episodes": 2, "episode_length": 250, "market_bars": BARS, "validate_every": 1},
    **{"hidden_sizes": [16, 16], "num_epochs": 1},
}
UPLOADED = b"Date,Open"


def test_there_are_three():
    assert NAMES == ("strategic_mappo_training", "sweep_and_analysis", "tactical_mappo_training")


# what the repository holds


def stored(name):
    return jupytext.read(FOLDER / f"{name}.ipynb")


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_holds_the_same_cells(name):
    script, notebook = written(name), stored(name)
    for one in (script, notebook):
        assert one.metadata["jupytext"]["formats"] == "ipynb,py:percent"
        assert notebooks.parameters(one) == 1
    cells = [
        [(x.cell_type, x.source, x.metadata.get("tags", [])) for x in one.cells]
        for one in (script, notebook)
    ]
    assert cells[0] == cells[1]


@pytest.mark.parametrize("name", NAMES)
def test_kept_outputs_are_of_one_whole_run(name):
    notebook = stored(name)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert {x.output_type for x in outputs(notebook)} == {
        "stream",
        "execute_result",
        "display_data",
    }
    assert not [x for x in outputs(notebook) if x.output_type == "stream" and x.name == "stderr"]
    pictures = [base64.b64decode(x.data[PICTURE]) for x in outputs(notebook, PICTURE)]
    assert len(pictures) >= 4
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    assert notebooks.kept(notebook) == notebook  # nothing of the machine or of the moment


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_and_no_output_names_a_machine_path(name):
    for cell in stored(name).cells:
        shown = [json.dumps({**x, "data": plain(x)}) for x in cell.get("outputs", ())]
        found = [part for part in (cell.source, *shown) if MACHINE_PATH.search(part)]
        assert not found, found


def plain(output):
    """Return what an output shows as text."""
    return {kind: shown for kind, shown in output.get("data", {}).items() if kind != PICTURE}


# the cell that installs and looks for the GPU


def run_cell(name, number, **names):
    """Run a code cell of a notebook here; return its names."""
    names = {"REPOSITORY": "", "USE_DRIVE": False, **names}
    exec(compile(code(written(name))[number].source, name, "exec"), names)
    return names


@pytest.fixture
def colab(monkeypatch):
    """Stand in for Colab's packages; return what was asked of them."""
    asked = []
    drive, files = types.ModuleType("google.colab.drive"), types.ModuleType("google.colab.files")
    drive.mount = lambda path: asked.append(("mount", path))
    files.upload = lambda: {"mine.csv": UPLOADED}
    files.download = lambda path: asked.append(("download", path))
    here = types.ModuleType("google.colab")
    here.drive, here.files = drive, files
    google = types.ModuleType("google")
    google.colab = here
    for module in (google, here, drive, files):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


@pytest.fixture
def missing(monkeypatch):
    """Let gm_jax be not installed; return the programs that are run."""
    ran = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    monkeypatch.setattr(doctor, "examine", lambda: {"ok": True, "notes": [], "nvidia_gpus": []})
    monkeypatch.setattr(sys, "path", [*sys.path])
    return ran


@pytest.mark.parametrize("name", NAMES)
def test_without_gm_jax_the_notebook_says_what_to_set(name, missing):
    with pytest.raises(RuntimeError, match=r"not installed here.*set REPOSITORY in the first cell"):
        run_cell(name, 1)
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_colab_installs_it_and_keeps_its_packages(
    name, missing, colab, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gm_jax_source").mkdir()  # as a second try finds it
    run_cell(name, 1, REPOSITORY="https://example.org/gm_jax.git")
    ((python, *_, pins, _, source),) = missing
    assert (python, source) == (sys.executable, "gm_jax_source")
    pinned = dict(line.split("==") for line in (tmp_path / pins).read_text().splitlines())
    assert {"jax", "jaxlib", "numpy", "pandas"} <= pinned.keys()
    assert pinned["jax"] == importlib.metadata.version("jax")
    assert "Change runtime type" in capsys.readouterr().out

    (tmp_path / "gm_jax_source").rmdir()
    monkeypatch.setattr(subprocess, "run", lambda command, **_: missing.append(command) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cell(name, 1, REPOSITORY="https://example.org/gm_jax.git")
    assert missing[-1][:2] == ["git", "clone"]
    assert "https://example.org/gm_jax.git" in missing[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_that_jax_does_not_see_is_an_error(name, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "jax_devices", lambda: [CPU])
    run_cell(name, 1)
    assert capsys.readouterr().out == "no GPU: training runs on the CPU.\n"
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: doctor.Nvidia(("Tesla T4",), "550.54"))
    with pytest.raises(RuntimeError, match=r"JAX does not see the GPU \(Tesla T4\): .*pip install"):
        run_cell(name, 1)


# what else Colab has


def test_drive_is_mounted_and_holds_the_runs(colab):
    settings = {"RUNS": "exports", "RESUME": True, "PRESET": "quick", "SEED": 3}
    settings |= {"USE_DRIVE": True, "SETTINGS": {"gamma": 0.9}}
    found = run_cell("tactical_mappo_training", 2, Path=Path, **settings)
    assert colab == [("mount", "/content/drive")]
    assert found["run"].parent.as_posix() == "/content/drive/MyDrive/gm_jax/exports"
    wanted = TACTICAL.settings.replace(**TACTICAL.quick, seed=3, gamma=0.9)
    assert found["trainer"].settings == wanted


@pytest.mark.parametrize("name", TRAININGS)
def test_an_upload_is_kept_beside_the_runs(name, colab, tmp_path):
    class TakenError(Exception):
        pass

    def take(data, **options):
        raise TakenError(data, options)

    names = {"trainer": types.SimpleNamespace(set_data=take), "runs": tmp_path / "exports"}
    names |= {"CSV": "", "MARKET": "planted", "CSV_OPTIONS": {"tz": "UTC"}, "cut_off": None}
    with pytest.raises(TakenError) as taken:
        run_cell(name, 3, UPLOAD=True, **names)
    file = tmp_path / "data" / "mine.csv"
    assert taken.value.args == (file, {"tz": "UTC"})
    assert file.read_bytes() == UPLOADED
    with pytest.raises(TakenError) as taken:
        run_cell(name, 3, UPLOAD=False, **names)
    assert taken.value.args == ("planted", {"tz": "UTC"})


@pytest.mark.parametrize("name", NAMES)
def test_without_drive_the_result_is_downloaded(name, colab, tmp_path, capsys):
    folder = tmp_path / "sweep"
    names = {"run": folder / "best", "folder": folder, "json": json, "ON_COLAB": True}
    names["run"].mkdir(parents=True)
    run_cell(name, -1, **names)
    assert "pip install torch && gm-jax export" in capsys.readouterr().out
    whole = folder if name == "sweep_and_analysis" else names["run"]
    assert colab == [("download", f"{whole}.zip")]
    assert Path(f"{whole}.zip").stat().st_size
    run_cell(name, -1, **names | {"USE_DRIVE": True})
    assert len(colab) == 1


# top to bottom


def finished(folder, best=""):
    """Return the one run directory that a notebook has left, after a look at what is in it."""
    (run,) = (x for x in (folder / "exports").iterdir() if x.is_dir())
    run /= best
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads((run / "validation_results.json").read_text())["iterations"] == len(rows)
    assert (run / "plots" / "equity_test.png").stat().st_size > 10_000
    if package.available():
        files = json.loads((run / "manifest.json").read_text())["files"]
        assert "deploy_model.py" in files
        assert all((run / name).exists() for name in files)
    return run


def test_tactical_goes_on_after_a_cut_off(tmp_path):
    small = {"SETTINGS": SMALL, "SHOW_EVERY": 1}
    notebook = changed(written("tactical_mappo_training"), **small)
    first, train = (notebook.cells.index(code(notebook)[x]) for x in (3, 5))
    again = [cell.copy() for cell in notebook.cells[first : train + 1]]
    save = "trainer.save_progress(run)"
    cut = [new_code_cell("planned = 1"), notebook.cells[train], new_code_cell(save), *again]
    notebook.cells[train : train + 1] = cut
    execute(notebook, tmp_path, **HASTE)
    said = text(notebook)
    assert "episodes 1 to 2" in said
    assert "goes on exactly after episode 1 of 2" in said
    assert "episodes 2 to 2" in said
    assert len(outputs(notebook, PICTURE)) == 8  # closes and learning twice, four of the report
    assert len((finished(tmp_path) / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_sweep_is_ranked_and_its_best_run_shown(tmp_path):
    grid = {"lr_actor": [1e-4, 3e-4]}
    values = {"SETTINGS": SMALL, "GRID": grid, "SEEDS": 1, "SYSTEM": "tactical"}
    notebook = execute(changed(written("sweep_and_analysis"), **values), tmp_path, **HASTE)
    assert len(outputs(notebook, PICTURE)) == 4
    tables = [x.data["text/plain"] for x in outputs(notebook, "text/html")]
    assert all(f"lr_actor={x:g}" in tables[0] for x in grid["lr_actor"])
    assert "bull trend" in tables[2]
    assert "execution" in tables[3]
    assert finished(tmp_path, "best").parent.name.endswith("-sweep-tactical")


@pytest.mark.slow
def test_strategic_trains_on_a_file(tmp_path):
    bars = generate("planted", bars=6_000, minutes=30, seed=0).bars
    write_csv(bars, tmp_path / "bars.csv")
    values = {"CSV": "bars.csv", "SETTINGS": SMALL, "SHOW_EVERY": 1}
    notebook = execute(changed(written("strategic_mappo_training"), **values), tmp_path, **HASTE)
    assert "bars          6000\nbar_minutes   30\n" in text(notebook)
    assert "timezone      America/New_York" in text(notebook)
    assert len(outputs(notebook, PICTURE)) == 6
    assert finished(tmp_path).name.endswith("-strategic")


def test_a_sweep_that_was_stopped_goes_on_when_its_cell_runs_again(tmp_path, monkeypatch):
    def stop(found):
        found.directory.release()
        return {"best_run": None}

    monkeypatch.setattr(sweep, "run", stop)
    names = {"RUNS": str(tmp_path), "RESUME": True, "SYSTEM": "tactical", "CSV": "", "SEED": 1}
    names |= {"MARKET": "planted", "PRESET": "quick", "SETTINGS": SMALL, "SEEDS": 1}
    names |= {"GRID": {"gamma": [0.9, 0.99]}, "Path": Path, "sys": sys}
    for grid in (names["GRID"], {"gamma": [0.5]}):
        with pytest.raises(RuntimeError, match="run this cell again to go on"):
            run_cell("sweep_and_analysis", 2, **names | {"GRID": grid})
    (found,) = tmp_path.iterdir()
    assert json.loads((found / "sweep.json").read_text())["asked"]["grid"]["gamma"] == [0.9, 0.99]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_as_it_stands(name, tmp_path):
    notebook = execute(written(name), tmp_path)
    assert len(outputs(notebook, PICTURE)) == len(outputs(stored(name), PICTURE))
    run = finished(tmp_path, "best" if name == "sweep_and_analysis" else "")
    test = json.loads((run / "validation_results.json").read_text())["splits"]["test"]
    assert test["sharpe_ratio"] > 0.5 * test["oracle_sharpe"] > 1
