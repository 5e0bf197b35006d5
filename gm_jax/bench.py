"""Speed of the program on this machine, as a share of what its matrix products could reach."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from gm_jax.env import core
from gm_jax.env.types import Array, EnvParams, Market
from gm_jax.mappo import learner
from gm_jax.mappo.rollout import auto_reset
from gm_jax.mappo.types import Config, TrainState
from gm_jax.report.policies import draw
from gm_jax.run.progress import memory_bytes
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.settings import Settings
from gm_jax.systems import System


REPEATS = 3  # training, environment and ceiling in turn, since machines drift
ENV_STEPS = 1_000  # of every environment in one environment-only launch
CEILING_ROWS = 4096


def bench(system: System, settings: Settings, seconds: float) -> dict[str, Any]:
    """Measure training, environment alone and the matmul ceiling in the same run.

    Args:
        system: whose team and networks.
        settings: sizes and precision.
        seconds: about how long to measure, after compiling.

    Returns:
        The figures of `bench --json`, medians of alternated repeats.
    """
    setup = prepare(system, settings, load(Source(market="planted"), settings, system.minutes))
    one, compile_seconds, warm_seconds = _compile(setup)
    key = jax.random.key(settings.seed)
    state = learner.init_state(key, setup.market, setup.params, setup.config)
    env = partial(env_only, market=setup.market, params=setup.params, config=setup.config)
    matmul, matmul_flops = _ceiling(settings)

    share = seconds / (3 * REPEATS)
    env_steps = settings.num_envs * ENV_STEPS
    window_steps = settings.num_envs * setup.episode_length
    state = jax.block_until_ready(one(state))
    figures: dict[str, list[float]] = {"train": [], "env": [], "ceiling": []}
    for _ in range(REPEATS):
        figures["ceiling"].append(_rate(matmul, share) * matmul_flops)
        figures["env"].append(_rate(lambda: env(key), share) * env_steps)
        began, count = time.perf_counter(), 0
        while not count or time.perf_counter() - began < share:
            state = jax.block_until_ready(one(state))
            count += 1
        figures["train"].append(count * window_steps / (time.perf_counter() - began))
    median = {name: statistics.median(values) for name, values in figures.items()}
    flops = flops_per_env_step(setup)
    return {
        "system": system.name,
        "env_steps_per_second": median["train"],
        "env_only_steps_per_second": median["env"],
        "compile_seconds": compile_seconds,
        "warm_start_seconds": warm_seconds,
        "flops_per_env_step": flops,
        "model_flops_per_second": flops * median["train"],
        "matmul_ceiling_flops_per_second": median["ceiling"],
        "model_flops_utilisation": flops * median["train"] / median["ceiling"],
        "peak_memory_bytes": memory_bytes(),
        "num_envs": settings.num_envs,
        "hidden_sizes": list(settings.hidden_sizes),
        "precision": settings.precision,
        "device": jax.devices()[0].device_kind,
    }


def flops_per_env_step(setup: Setup) -> int:
    """Return the dense layers' floating-point operations per environment step.

    A forward pass costs 2 per weight, a gradient three of them: once forward to act, twice to
    value this state and the next, then forward and backward in every epoch.
    """
    networks = abstract_state(setup).networks
    epochs = setup.config.num_epochs
    return weights(networks.actor) * 2 * (1 + 3 * epochs) + weights(networks.critic) * 2 * (
        2 + 3 * epochs
    )


def weights(params: Any) -> int:
    """Count the entries of all kernels, leaves [copies, inputs, outputs]."""
    return sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 3)


def abstract_state(setup: Setup) -> TrainState:
    """Return the shapes of a run's state."""
    init = partial(learner.init_state, config=setup.config)
    state: TrainState = jax.eval_shape(init, jax.random.key(0), setup.market, setup.params)
    return state


def _compile(setup: Setup) -> tuple[Callable[[Any], Any], float, float]:
    """Compile the training program cold, then again from the cache it left behind."""
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    state, seconds = abstract_state(setup), []
    before = jax.config.values["jax_compilation_cache_dir"]
    with tempfile.TemporaryDirectory() as cache:
        try:
            _use_cache(cache)
            for _ in range(2):
                jax.clear_caches()
                began = time.perf_counter()
                lowered = learner.train.lower(state, jnp.int32(1), *arguments, config=setup.config)
                compiled = lowered.compile()
                seconds.append(time.perf_counter() - began)
        finally:
            _use_cache(before)
    return lambda s: compiled(s, jnp.int32(1), *arguments)[0], seconds[0], seconds[1]


def _use_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


@partial(jax.jit, static_argnames="config")
def env_only(key: Array, market: Market, params: EnvParams, config: Config) -> Array:
    """Step N environments with random legal actions, resets included; return a checksum."""
    team = config.system.team
    observe = jax.vmap(partial(core.observe, market=market, params=params, team=team))
    advance = jax.vmap(partial(core.step, market=market, params=params, team=team))

    def body(carry: Any, key: Array) -> tuple[Any, None]:
        env, total = carry
        obs = observe(env)
        bits = jax.random.bits(key, (*obs.mask.shape[:2],), dtype=jnp.uint32)
        env, outcome = advance(env, jax.vmap(draw)(bits, obs.mask))
        done = outcome.terminated | outcome.truncated
        total += obs.obs.sum() + obs.global_obs.sum() + outcome.reward.sum()
        return (auto_reset(key, env, done, market, params, config), total), None

    start = core.reset_many(key, config.num_envs, market, params, team)
    keys = jax.random.split(key, ENV_STEPS)
    return jax.lax.scan(body, (start, jnp.float32(0)), keys)[0][1]


def _ceiling(settings: Settings) -> tuple[Callable[[], Array], int]:
    """Return the matrix product of the networks' widest layer, over and over, and its FLOPs."""
    width, times = max(settings.hidden_sizes), 16
    half = settings.precision == "bfloat16"
    dtype = jnp.bfloat16 if half else jnp.float32
    precision = None if half else jax.lax.Precision.HIGHEST
    x = jax.random.normal(jax.random.key(0), (CEILING_ROWS, width)).astype(dtype)
    w = jax.random.normal(jax.random.key(1), (width, width)).astype(dtype) / width**0.5

    @jax.jit
    def products(x: Array, w: Array) -> Array:
        return jax.lax.fori_loop(0, times, lambda _, y: jnp.matmul(y, w, precision=precision), x)

    return partial(products, x, w), times * 2 * CEILING_ROWS * width * width


def _rate(call: Callable[[], Any], seconds: float) -> float:
    """Return calls per second after one that is not counted."""
    jax.block_until_ready(call())
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        jax.block_until_ready(call())
        count += 1
    return count / (time.perf_counter() - began)
