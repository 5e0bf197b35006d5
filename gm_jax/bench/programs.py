"""The programs that a bench measures: training, the environment alone, matrix products."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gm_jax import cache
from gm_jax.batch_trials import program_bytes
from gm_jax.bench import hlo
from gm_jax.env import core
from gm_jax.env.types import Array, EnvParams, Market
from gm_jax.mappo.networks import matmul_precision
from gm_jax.mappo.rollout import auto_reset
from gm_jax.mappo.types import Config, TrainState
from gm_jax.report.policies import draw
from gm_jax.run import launch
from gm_jax.run.setup import Setup
from gm_jax.settings import Settings


ENV_STEPS = 1_000  # of every environment in one environment-only launch


class Training(NamedTuple):
    """The compiled training program, and what compiling it took."""

    iterate: Callable[[TrainState], TrainState]  # one iteration
    compile_seconds: float  # from nothing
    warm_seconds: float  # from the cache that the first left behind
    memory: int  # bytes it holds at most, by the compiler
    work: hlo.Work  # of an iteration


def compile_training(setup: Setup) -> Training:
    """Compile the training program cold, then again from the cache it left behind."""
    compiled, seconds = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        # the user may have none
        cache.options(jax_compilation_cache_dir=folder, jax_enable_compilation_cache=True),
    ):
        for _ in range(2):
            jax.clear_caches()
            began = time.perf_counter()
            lowered = launch.lower(setup)
            compiled.append(lowered.compile())
            seconds.append(time.perf_counter() - began)
    first = compiled[0]
    return Training(
        iterate=lambda state: first(state, jnp.int32(1), *launch.arguments_of(setup))[0],
        compile_seconds=seconds[0],
        warm_seconds=seconds[1],
        memory=program_bytes(first),
        work=hlo.work(lowered.as_text(dialect="hlo")),
    )


def memory_by_num_envs(setup: Setup) -> dict[str, int]:
    """Return what the program takes with a quarter and with four times the environments, bytes.

    Sizes that do not go with the minibatches are left out.
    """
    config, found = setup.config, {}
    for num_envs in (config.num_envs // 4, config.num_envs * 4):
        if num_envs and num_envs * config.rollout_length % config.num_minibatches == 0:
            other = dataclasses.replace(config, num_envs=num_envs)
            lowered = launch.lower(dataclasses.replace(setup, config=other))
            found[str(num_envs)] = program_bytes(lowered.compile())
    return found


@partial(jax.jit, static_argnames="config")
def env_only(key: Array, market: Market, params: EnvParams, config: Config) -> Array:
    """Step N environments with random legal actions, resets included; return a checksum."""
    team = config.system.team
    observe = jax.vmap(partial(core.observe, market=market, params=params, team=team))
    advance = jax.vmap(partial(core.step, market=market, params=params, team=team))

    def body(carry: Any, key: Array) -> tuple[Any, None]:
        env, total = carry
        obs = observe(env)
        agents = obs.mask.shape[1]
        bits = jax.random.bits(key, (config.num_envs, agents + core.reset_bits(team)), jnp.uint32)
        env, outcome = advance(env, jax.vmap(draw)(bits[:, :agents], obs.mask))
        done = outcome.terminated | outcome.truncated
        total += obs.obs.sum() + obs.global_obs.sum() + outcome.reward.sum()
        return (auto_reset(bits[:, agents:], env, done, market, params, team), total), None

    start = core.reset_many(key, config.num_envs, market, params, team)
    keys = jax.random.split(key, ENV_STEPS)
    return jax.lax.scan(body, (start, jnp.float32(0)), keys)[0][1]


def ceiling(settings: Settings) -> tuple[Callable[[], Array], int]:
    """Return the matrix product of the networks' widest layer, over and over, and its FLOPs.

    On accelerators it has more rows and lasts longer, or launching it would be what is measured.
    """
    cpu = jax.default_backend() == "cpu"
    width, times, rows = max(settings.hidden_sizes), *((16, 2**12) if cpu else (1_000, 2**16))
    dtype, precision = matmul_precision(settings.precision)
    x = jax.random.normal(jax.random.key(0), (rows, width)).astype(dtype)
    w = jax.random.normal(jax.random.key(1), (width, width)).astype(dtype) / width**0.5

    @jax.jit
    def products(x: Array, w: Array) -> Array:
        return jax.lax.fori_loop(0, times, lambda _, y: jnp.matmul(y, w, precision=precision), x)

    return partial(products, x, w), times * 2 * rows * width * width
