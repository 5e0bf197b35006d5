"""The scripts of `benchmarks/`: their commands are valid, their page shows their records."""

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from gm_jax import cli, config
from gm_jax.cli_base import settings_of, system_named


FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)  # its dataclasses look there
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run():
    with pytest.MonkeyPatch.context() as patch:
        module = script("run")
        patch.setitem(sys.modules, "run", module)  # the other scripts import it
        yield module


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_every_row_is_a_command(run, where):
    rows = run.TABLES[where]()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        arguments = cli._parser().parse_args(shlex.split(row.command))
        settings = settings_of(arguments, system_named(arguments.system))
        if getattr(arguments, "num_envs", None):
            settings = config.change(settings, {"num_envs": arguments.num_envs}, "--num-envs")
        assert f"{settings.num_envs}" in row.name
        rows_at_once = settings.num_envs * settings.rollout_length / settings.num_minibatches
        assert rows_at_once <= run.ROWS_AT_ONCE


def test_the_page_shows_the_records(run):
    page = run.README.read_text(encoding="utf-8")
    for name, rows in run.TABLES.items():
        assert run.replaced(page, name, run.table(rows(), run.records())) == page


def test_cells_are_those_of_the_headings(run):
    bench = {
        **{"env_steps_per_second": 8_900.4, "env_steps_per_second_spread": [8_000.0, 9_000.0]},
        **{"model_flops_utilisation": 0.63, "model_flops_utilisation_spread": [0.6, 0.66]},
        **{"env_only_steps_per_second": 2e6, "env_only_steps_per_second_spread": [1e6, 3e6]},
        **{"compile_seconds": 12.04, "warm_start_seconds": 2.1, "program_memory_bytes": 2**25},
        **{"decision_p50_ms": 0.184, "decision_p99_ms": 0.4},
    }
    whole = {"env_steps_per_second": 1e6, "wall_seconds": 250.0, "compile_seconds": 30.0}
    stamp = {"date": "2026-11-24", "commit": "abc", "hardware": "a machine", "jax": "0.10"}
    for figures in (bench, whole):
        found = run.cells(stamp | {"figures": figures})
        assert len(found) == len(run.HEADINGS)
        assert found[-1] == "2026-11-24, abc, a machine, jax 0.10"
    assert run.cells(stamp | {"figures": whole})[0] == "1,000,000, 250 s in all"
    assert run.cells(stamp | {"figures": bench})[:6] == [
        "8,900 (8,000 to 9,000)",
        "0.63 (0.60 to 0.66)",
        "2,000,000 (1,000,000 to 3,000,000)",
        *("12.0", "2.1", "32"),
    ]
    assert run.cells(stamp | {"figures": bench})[-2] == "0.18, 0.40"
    assert run.cells(None) == ["not measured", *[""] * (len(run.HEADINGS) - 1)]


def test_a_start_that_does_not_come_off_says_why(tmp_path):
    start = script("start")
    with pytest.raises(SystemExit, match=r"(?s)no first iteration:.*nosuch"):
        start.seconds_to_first_iteration(["nosuch"], tmp_path / "run", tmp_path / "compiled")


@pytest.mark.slow
def test_the_page_shows_the_estimate(run):
    roofline = script("roofline")
    works = [roofline.work_of(s, p) for s in roofline.SYSTEMS for p in roofline.PEAK]
    page = run.README.read_text(encoding="utf-8")
    assert run.replaced(page, "roofline", roofline.table(works)) == page


COMPILED = """HloModule jit_train

%step (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  %obs = f32[8]{0} fusion(%p), kind=kLoop, calls=%a
  %act = f32[8]{0} fusion(%obs), kind=kCustom, calls=%b
  ROOT %t = (s32[]) tuple(%act)
}

%minibatch (p: (s32[])) -> (s32[]) {
  %g = f32[8]{0} fusion(%p), kind=kLoop, calls=%a
  %r = f32[8]{0} all-reduce-start(%g), to_apply=%add
  %d = f32[8]{0} all-reduce-done(%r)
  %x = f32[8]{0} collective-permute(%d), source_target_pairs={{0,1}}
  ROOT %t = (s32[]) tuple(%d)
}

%epoch (p: (s32[])) -> (s32[]) {
  %s = s32[8]{0} sort(%p), dimensions={0}
  ROOT %w = (s32[]) while(%s), condition=%c, body=%minibatch, x={"known_trip_count":{"n":"4"}}
}

%iteration (p: (s32[])) -> (s32[]) {
  %w = (s32[]) while(%p), condition=%c, body=%step, x={"known_trip_count":{"n":"128"}}
  %e = (s32[]) while(%w), condition=%c, body=%epoch, x={"known_trip_count":{"n":"3"}}
  %v = f32[] conditional(%e), branch_computations={%c, %c}
  ROOT %k = f32[] copy(%v)
}

ENTRY %main (p: (s32[])) -> (s32[]) {
  ROOT %w = (s32[]) while(%p), condition=%c, body=%iteration
}
"""


def test_the_page_has_the_columns_of_the_counts(run):
    page = run.README.read_text(encoding="utf-8")
    assert f"<!-- kernels -->\n{script('kernels').table({}, {})}\n|" in page


def test_kernels_are_counted_by_loop(run):
    expected = (2, 3, 1 + 2 * 128 + 3 * (1 + 4 * 3), 0, 2)
    assert script("kernels").counted(COMPILED) == expected
