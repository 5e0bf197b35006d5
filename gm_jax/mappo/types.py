"""The learner's nouns.

Letters: N environments, H rollout steps, A agents, K actions, C critics (1 central, A local),
B rows of a minibatch, S groups of environments, R steps of a group in a rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from flax import struct
from jax.sharding import Mesh

from gm_jax.env.types import Array, State
from gm_jax.systems import System


@dataclass(frozen=True)
class Config:
    """What shapes the program: static and hashable."""

    system: System
    num_envs: int
    rollout_length: int
    num_rollouts: int  # updates an iteration
    num_minibatches: int
    num_epochs: int
    hidden_sizes: tuple[int, ...]
    layer_norm: int
    central: bool
    precision: str  # of the matrix products, see `networks.matmul_precision`
    initial_neutral: float  # first probability of neutral actions, all being legal
    huber: bool
    interval: int  # most iterations one call of the program runs
    micro_rows: int  # most that gradients are taken of at a time, where one device has all
    mesh: Mesh | None = None  # the devices that share the environments; None: one has all

    @property
    def groups(self) -> int:
        """The most groups of environments whose steps divide into minibatches evenly."""
        size = self.num_minibatches // math.gcd(self.num_minibatches, self.rollout_length)
        return self.num_envs // size

    @property
    def micro_batches(self) -> int:
        """Into how many equal parts a minibatch falls whose gradients are added up."""
        rows = self.num_envs * self.rollout_length // self.num_minibatches
        if self.mesh is not None or rows <= self.micro_rows:
            return 1
        counts = (n for n in range(2, rows + 1) if rows % n == 0 and rows // n <= self.micro_rows)
        count = next(counts)
        return count if 4 * rows // count >= self.micro_rows else 1  # too small a part is slower


class Hyper(struct.PyTreeNode):
    """What the program traces: change or vmap it without recompiling; f32 scalars unless noted."""

    lr_actor: Array
    lr_critic: Array
    gamma: Array
    gae_lambda: Array
    clip_eps: Array
    ent_coef: Array
    ent_coef_final: Array
    target_kl: Array
    max_grad_norm: Array
    huber_delta: Array
    value_norm_decay: Array
    num_updates: Array  # planned for the whole run: learning rates and entropy anneal over it
    validate_every: Array  # i32, iterations


class ValueNorm(struct.PyTreeNode):
    """Running mean and square of returns, debiased on use."""

    mean: Array  # [A] f32
    square: Array  # [A] f32
    weight: Array  # [] f32, share of the estimate that is not its zero start


class Networks(struct.PyTreeNode):
    """Parameters of a team."""

    actor: Any  # leaves [A, …]
    critic: Any  # leaves [C, …]
    value_norm: ValueNorm


class Best(struct.PyTreeNode):
    """The networks that scored best on validation."""

    networks: Networks
    score: Array  # f32, −inf before the first validation
    sharpe: Array  # f32, NaN where the score is not a Sharpe ratio
    iteration: Array  # i32


class TrainState(struct.PyTreeNode):
    """Everything a run carries; donated, and saved whole."""

    networks: Networks
    actor_opt: Any  # leaves [A, …]
    critic_opt: Any  # leaves [C, …]
    env: State  # leaves [N]
    key: Array
    update: Array  # i32
    iteration: Array  # i32
    best: Best


class Transition(struct.PyTreeNode):
    """One step of every environment; H-stacked it is the rollout."""

    obs: Array  # [H, N, A, O] f32
    global_obs: Array  # [H, N, G] f32; with local critics [H, N, A, O]
    next_global_obs: Array  # the same, of the real next state, before any reset
    mask: Array  # [H, N, A, K] bool
    action: Array  # [H, N, A] i32
    log_prob: Array  # [H, N, A] f32
    reward: Array  # [H, N, A] f32, bp
    terminated: Array  # [H, N] bool
    truncated: Array  # [H, N] bool


class Totals(struct.PyTreeNode):
    """What the steps of a rollout came to in every environment."""

    terms: dict[str, Array]  # [N] f32, bp
    cost: Array  # [N] i32, cents


class Batch(struct.PyTreeNode):
    """What the losses need, one row per environment step; of a whole rollout [S, R, …]."""

    obs: Array  # [B, A, O]
    global_obs: Array  # [B, G]; with local critics [B, A, O]
    mask: Array  # [B, A, K]
    action: Array  # [B, A]
    log_prob: Array  # [B, A]
    advantage: Array  # [B, A], normalised per agent
    value: Array  # [B, A], normalised units
    target: Array  # [B, A], normalised units


Metrics = dict[str, jax.Array]
