"""MAPPO: rollout, advantages, epochs of minibatches, validation: one compiled program.

`iterate` and `update` are the table of contents. The host calls `train`, logs and saves; nothing
else leaves the device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gm_jax.env import core
from gm_jax.env.ops import select
from gm_jax.env.types import Array, EnvParams, Market
from gm_jax.mappo import loss, networks, value_norm
from gm_jax.mappo.gae import gae
from gm_jax.mappo.rollout import collect, critic_input
from gm_jax.mappo.sharding import in_place, over_devices
from gm_jax.mappo.types import (
    Batch,
    Best,
    Config,
    Hyper,
    Metrics,
    Networks,
    TrainState,
    Transition,
)
from gm_jax.mappo.validation import Segments, segment_score


@partial(jax.jit, static_argnames="config")
def init_state(key: Array, market: Market, params: EnvParams, config: Config) -> TrainState:
    """Return fresh networks, optimisers and environments."""
    key, actor_key, critic_key, env_key = jax.random.split(key, 4)
    team, agents = config.system.team, len(config.system.agents)
    env = core.reset_many(env_key, config.num_envs, market, params, team)
    obs = core.observe(jax.tree.map(lambda x: x[0], env), market, params, team)
    actor = networks.init_actors(actor_key, config, obs.obs.shape[-1])
    critic = networks.init(
        critic_key,
        networks.critic_network(config),
        critic_input(obs, config).shape[-1],
        copies=1 if config.central else agents,
    )
    team_networks = Networks(actor, critic, value_norm.init(agents))
    return TrainState(
        networks=team_networks,
        actor_opt=jax.vmap(optax.scale_by_adam().init)(actor),
        critic_opt=jax.vmap(optax.scale_by_adam().init)(critic),
        env=env,
        key=key,
        update=jnp.int32(0),
        iteration=jnp.int32(0),
        best=unscored(team_networks),
    )


def abstract_state(market: Market, params: EnvParams, config: Config) -> TrainState:
    """Return the shapes and types of what `init_state` returns, without computing it."""
    state: TrainState = jax.eval_shape(
        lambda *inputs: init_state(*inputs, config), jax.random.key(0), market, params
    )
    return state


def unscored(nets: Networks) -> Best:
    """Return what is best before any validation; its arrays are not those of `nets`."""
    return Best(
        networks=jax.tree.map(jnp.copy, nets),
        score=jnp.float32(-jnp.inf),
        sharpe=jnp.float32(jnp.nan),
        iteration=jnp.int32(0),
    )


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def train(
    state: TrainState,
    iterations: Array,
    market: Market,
    params: EnvParams,
    hyper: Hyper,
    segments: Segments,
    config: Config,
) -> tuple[TrainState, Metrics]:
    """Run `iterations` iterations (at most config.interval).

    Args:
        state: donated.
        iterations: [] i32.
        market: bars on the device.
        params: of the environment.
        hyper: of the learner.
        segments: of the validation split.
        config: static.

    Returns:
        The state and the metrics, each [config.interval, ...]; rows past `iterations` are zero.
    """
    one = partial(
        iterate, market=market, params=params, hyper=hyper, segments=segments, config=config
    )
    rows = jax.tree.map(
        lambda x: jnp.zeros((config.interval, *x.shape), x.dtype), jax.eval_shape(one, state)[1]
    )

    def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, rows = carry
        state, row = one(state)
        state = in_place(state, config)
        return state, jax.tree.map(lambda r, x: r.at[i].set(x), rows, row)

    return jax.lax.fori_loop(0, iterations, body, (state, rows))


@partial(jax.jit, static_argnames="config")  # `train` uses it twice, traces it once
def iterate(
    state: TrainState,
    market: Market,
    params: EnvParams,
    hyper: Hyper,
    segments: Segments,
    config: Config,
) -> tuple[TrainState, Metrics]:
    """Play one window in every environment with an update after each rollout, then validate."""

    def rollout_and_update(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return update(state, market, params, hyper, config)

    state, metrics = jax.lax.scan(rollout_and_update, state, None, length=config.num_rollouts)
    ratio_error = metrics.pop("ratio_error").max(0)
    metrics = jax.tree.map(lambda x: x.mean(0), metrics) | sizes(state.networks)
    state = state.replace(iteration=state.iteration + 1)
    due = (state.iteration % hyper.validate_every == 0) | (state.update >= hyper.num_updates)
    score, sharpe = jax.lax.cond(
        due,
        lambda: segment_score(state.networks.actor, market, params, segments, config),
        lambda: (jnp.float32(jnp.nan), jnp.float32(jnp.nan)),
    )
    better = due & (score > state.best.score)
    candidate = Best(state.networks, score, sharpe, state.iteration)
    best = select(better, candidate, state.best)
    metrics |= {"ratio_error": ratio_error, "selection_score": score, "validation_sharpe": sharpe}
    return state.replace(best=best), metrics


def update(
    state: TrainState, market: Market, params: EnvParams, hyper: Hyper, config: Config
) -> tuple[TrainState, Metrics]:
    """Collect one rollout and learn from it."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    env, rollout, totals = collect(state, rollout_key, market, params, config)
    batch, returns = prepare(state.networks, rollout, hyper, config)
    learned, metrics = learn(state, batch, shuffle_key, hyper, config)
    norm = value_norm.update(state.networks.value_norm, returns, hyper.value_norm_decay)
    state = learned.replace(
        networks=learned.networks.replace(value_norm=norm),
        env=env,
        key=key,
        update=state.update + 1,
    )
    metrics |= {
        "reward": rollout.reward.mean((0, 1)) * config.rollout_length * config.num_rollouts,
        "terms": jax.tree.map(lambda x: x.mean() * config.num_rollouts, totals.terms),
        "terminated": rollout.terminated.mean(dtype=jnp.float32),
        "cost_usd": totals.cost.mean() * config.num_rollouts / 100,
    }
    return state, metrics


@jax.jit  # one program instead of one for every shape
def chosen(state: TrainState) -> Networks:
    """Return the networks that validation chose, or the newest before its first."""
    return select(jnp.isfinite(state.best.score), state.best.networks, state.networks)


def chosen_at(state: TrainState) -> int:
    """Return how many iterations the networks of `chosen` were trained for."""
    return int(state.best.iteration if jnp.isfinite(state.best.score) else state.iteration)


def sizes(nets: Networks) -> Metrics:
    """Return norms of the parameters and the scale of returns: finite only if all of them are."""

    def norm(tree: Any) -> Array:
        return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))

    mean, deviation = value_norm.moments(nets.value_norm)
    return {
        "actor_norm": jax.vmap(norm)(nets.actor),
        "critic_norm": norm(nets.critic),
        "return_mean": mean,
        "return_std": deviation,
    }


def prepare(
    nets: Networks, rollout: Transition, hyper: Hyper, config: Config
) -> tuple[Batch, Array]:
    """Return the rollout as a batch with advantages and targets, and the returns in bp."""
    norm = nets.value_norm
    value = networks.values(config, nets.critic, rollout.global_obs)
    next_value = networks.values(config, nets.critic, rollout.next_global_obs)
    advantage, returns = gae(
        rollout.reward,
        value_norm.denormalise(norm, value),
        value_norm.denormalise(norm, next_value),
        rollout.terminated[..., None],
        rollout.truncated[..., None],
        hyper.gamma,
        hyper.gae_lambda,
    )
    centred = advantage - advantage.mean((0, 1))
    batch = Batch(
        obs=rollout.obs,
        global_obs=rollout.global_obs,
        mask=rollout.mask,
        action=rollout.action,
        log_prob=rollout.log_prob,
        advantage=centred / (advantage.std((0, 1)) + 1e-8),
        value=value,
        target=value_norm.normalise(norm, returns),
    )
    return jax.tree.map(partial(_grouped, config), batch), returns


def _grouped(config: Config, x: Array) -> Array:
    """Turn [H, N, …] into [S, R, …], by groups of environments."""
    return over_devices(x.swapaxes(0, 1).reshape(config.groups, -1, *x.shape[2:]), config)


def learn(
    state: TrainState, batch: Batch, key: Array, hyper: Hyper, config: Config
) -> tuple[TrainState, Metrics]:
    """Run the epochs of minibatches; an agent past the target KL keeps its policy for the rest.

    A minibatch takes equally many steps of each group of environments, drawn without replacement:
    nothing crosses from one device to another but gradients.
    """
    steps = batch.action.shape[1]
    progress = state.update.astype(jnp.float32) / hyper.num_updates
    anneal = jnp.maximum(1 - progress, 0)
    ent_coef = hyper.ent_coef_final + (hyper.ent_coef - hyper.ent_coef_final) * anneal

    def minibatch(carry: Any, part: Batch) -> tuple[Any, Metrics]:
        state, stopped = carry
        nets = state.networks
        (actor_grad, critic_grad), rows = gradients(nets, part, ent_coef, hyper, config)
        metrics = loss.metrics_of(rows, part, hyper)
        stopped = stopped | (metrics["approx_kl"] > hyper.target_kl)
        actor, actor_opt = _adam(
            actor_grad, state.actor_opt, nets.actor, hyper.lr_actor * anneal, hyper
        )
        critic, critic_opt = _adam(
            critic_grad, state.critic_opt, nets.critic, hyper.lr_critic * anneal, hyper
        )
        keep = jax.vmap(select)  # over agents
        state = state.replace(
            networks=nets.replace(actor=keep(stopped, nets.actor, actor), critic=critic),
            actor_opt=keep(stopped, state.actor_opt, actor_opt),
            critic_opt=critic_opt,
        )
        return (state, stopped), metrics | {"stopped": stopped.astype(jnp.float32)}

    def epoch(carry: Any, key: Array) -> tuple[Any, Metrics]:
        parts = shuffled(key, steps, config)
        return jax.lax.scan(lambda c, rows: minibatch(c, _take(batch, rows)), carry, parts)

    stopped = jnp.zeros(len(config.system.agents), dtype=bool)
    keys = jax.random.split(key, config.num_epochs)
    (state, _), metrics = jax.lax.scan(epoch, (state, stopped), keys)
    first = metrics["ratio_error"][0, 0]
    metrics = jax.tree.map(lambda x: x.mean((0, 1)), metrics)
    return state, metrics | {"ratio_error": first}


def gradients(
    nets: Networks, batch: Batch, ent_coef: Array, hyper: Hyper, config: Config
) -> tuple[tuple[Any, Any], loss.Rows]:
    """Return the gradients of actors and critics, and the rows of their losses.

    The losses are means over rows, so the mean of equal micro-batches' gradients is the gradient;
    a processor's cache holds what one of them needs.
    """

    def of(part: Batch) -> tuple[tuple[Any, Any], loss.Rows]:
        actor, acted = jax.grad(loss.actor_loss, has_aux=True)(
            nets.actor, part, ent_coef, hyper, config
        )
        critic, judged = jax.grad(loss.critic_loss, has_aux=True)(nets.critic, part, hyper, config)
        return (actor, critic), acted | judged

    count = config.micro_batches
    if count == 1:
        return of(batch)

    def add(total: Any, part: Batch) -> tuple[Any, loss.Rows]:
        grads, rows = of(part)
        return jax.tree.map(jnp.add, total, grads), rows

    nothing = jax.tree.map(jnp.zeros_like, (nets.actor, nets.critic))
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    total, rows = jax.lax.scan(add, nothing, parts)
    grads = jax.tree.map(lambda x: x / count, total)
    return grads, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def shuffled(key: Array, steps: int, config: Config) -> Array:
    """Return the rows of every minibatch in each group, [M, S, R / M], every one of R `steps`."""
    order = jnp.argsort(jax.random.bits(key, (config.groups, steps)))
    return order.reshape(config.groups, config.num_minibatches, -1).swapaxes(0, 1)


def _take(batch: Batch, rows: Array) -> Batch:
    """Return the rows [S, B / S] of each group, as one minibatch [B, …]."""

    def one(x: Array) -> Array:
        taken = jax.vmap(lambda group, mine: group[mine])(x, rows)
        return taken.reshape(-1, *x.shape[2:])

    return jax.tree.map(one, batch)


def _adam(grads: Any, opt: Any, params: Any, rate: Array, hyper: Hyper) -> tuple[Any, Any]:
    """Take one Adam step per network of the stack, each clipped by its own global norm."""
    rule = optax.chain(
        optax.clip_by_global_norm(hyper.max_grad_norm), optax.scale_by_adam(eps=1e-5)
    )

    def one(grads: Any, opt: Any, params: Any) -> tuple[Any, Any]:
        steps, (_, opt) = rule.update(grads, (optax.EmptyState(), opt), params)
        return optax.apply_updates(params, jax.tree.map(lambda s: -rate * s, steps)), opt

    return jax.vmap(one)(grads, opt, params)
