"""MAPPO in plain eager PyTorch: what `gm-jax bench --compare` measures in turn with gm_jax.

The same recipe as gm_jax: three actors and a central critic (or three local ones) of the same
sizes, environments side by side, a rollout, values of every state and of the one after it, GAE,
epochs of minibatches with clipped losses, entropy and masks, gradients clipped per network, Adam.
The market is simpler than gm_jax's: a planted drift that the first feature shows, the tactical
team's rules for both systems, commission and half a tick of spread; no impact, stops, daily limits
or sessions. Its steps cost less than gm_jax's would here, and the dense layers are the same.

Sizes are read as one line of JSON from standard input; every further line is a number of seconds to
measure, answered with environment steps a second.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


AGENTS = 3  # desired position, limit, execution
BARS = 20_000
SPREAD_POINTS = 0.125  # half of it
DRIFT, NOISE = 2.0, 8.0  # points a bar


class Market:
    """N accounts on one path of prices, [N] each."""

    def __init__(self, sizes: Any, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        known = torch.randint(0, 2, (BARS // 50,), device=device).repeat_interleave(50) * 2.0 - 1
        moves = DRIFT * known + NOISE * torch.randn(BARS, device=device)
        self.close = 20_000 + moves.cumsum(0)
        self.open = self.close - moves + NOISE / 4 * torch.randn(BARS, device=device)
        self.features = torch.randn(BARS, sizes.features, device=device)
        self.features[:-1, 0] = known[1:]
        small, large = sizes.lots_small, sizes.lots_large
        lots = [0, small, large, -small, -large, *[0] * (sizes.actions - 5)]
        self.lots = torch.tensor(lots, device=device)
        state = self._fresh()
        self.t, self.steps, self.position, self.desired, self.limit = state[:5]
        self.equity, self.peak = state[5:]

    def _fresh(self) -> tuple[Tensor, ...]:
        """Return flat accounts at random bars."""
        n, sizes = self.sizes.num_envs, self.sizes
        start = torch.randint(0, BARS - sizes.episode_length - 1, (n,), device=self.device)
        zero = torch.zeros(n, dtype=torch.int64, device=self.device)
        money = torch.full((n,), sizes.start_equity_usd, device=self.device)
        return start, zero, zero, zero, zero + sizes.max_contracts, money, money.clone()

    def observe(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what agents see [N, A, O], the critic [N, G], legal actions [N, A, K]."""
        most, features = self.sizes.max_contracts, self.features[self.t]
        wanted = self.desired - self.position
        roles = torch.stack([self.desired, self.limit, wanted], 1) / most
        shared = features.unsqueeze(1).expand(-1, AGENTS, -1)
        obs = torch.cat([shared, roles.unsqueeze(-1)], -1)
        elapsed = self.steps / self.sizes.episode_length
        book = torch.stack([self.position / most, 1 - self.equity / self.peak, 1 - elapsed], 1)
        after = torch.stack([self.desired, self.limit], 1).unsqueeze(-1) + self.lots
        room = torch.stack([self.limit, torch.full_like(self.limit, most)], 1).unsqueeze(-1)
        moved = after.clamp(min=0).minimum(room) != after - self.lots
        mask = torch.cat([moved, (wanted.unsqueeze(-1) * self.lots > 0).unsqueeze(1)], 1)
        mask[..., 0] = True
        return obs, torch.cat([features, book, roles], 1), mask

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trade at the next open, mark at the next close: reward bp, terminated, truncated."""
        sizes, most = self.sizes, self.sizes.max_contracts
        lots = self.lots[action]
        self.limit = (self.limit + lots[:, 1]).clamp(0, most)
        self.desired = (self.desired + lots[:, 0]).clamp(min=0).minimum(self.limit)
        wanted = self.desired - self.position
        chosen = torch.where(lots[:, 2] * wanted > 0, wanted.abs(), 0)
        chosen = torch.where((action[:, 2] == 1) | (action[:, 2] == 3), chosen.clamp(max=1), chosen)
        size = chosen.maximum(self.position - self.limit)
        trade = wanted.sign() * size
        held, before = self.position, self.close[self.t]
        self.t, self.steps, self.position = self.t + 1, self.steps + 1, held + trade
        opened, closed = self.open[self.t], self.close[self.t]
        points = held * (opened - before) + self.position * (closed - opened)
        cost = trade.abs() * (sizes.commission_usd + SPREAD_POINTS * sizes.point_value_usd)
        gain = points * sizes.point_value_usd - cost
        self.equity = self.equity + gain
        self.peak = self.peak.maximum(self.equity)
        terminated = self.equity < 0.4 * sizes.start_equity_usd
        reward = (1e4 * gain / sizes.start_equity_usd).unsqueeze(1).expand(-1, AGENTS)
        return reward, terminated, (self.steps >= sizes.episode_length) & ~terminated

    def reset(self, done: Tensor) -> None:
        """Start new windows where the old ones are done."""
        names = ("t", "steps", "position", "desired", "limit", "equity", "peak")
        for name, fresh in zip(names, self._fresh(), strict=True):
            setattr(self, name, torch.where(done, fresh, getattr(self, name)))


class Stack(nn.Module):
    """Networks of one shape with weights of their own: [B, C, inputs] to [B, C, outputs]."""

    def __init__(self, copies: int, inputs: int, outputs: int, scale: float, sizes: Any) -> None:
        super().__init__()
        widths = [inputs, *sizes.hidden_sizes, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.norms = nn.ParameterList()
        for layer, (rows, columns) in enumerate(pairwise(widths)):
            gain = scale if layer == len(widths) - 2 else 2**0.5
            kernels = [nn.init.orthogonal_(torch.empty(rows, columns), gain) for _ in range(copies)]
            self.weights.append(nn.Parameter(torch.stack(kernels)))
            self.biases.append(nn.Parameter(torch.zeros(copies, 1, columns)))
            if layer < sizes.layer_norm:
                unit = torch.stack([torch.ones(copies, columns), torch.zeros(copies, columns)])
                self.norms.append(nn.Parameter(unit.unsqueeze(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply every network to its own inputs."""
        x = x.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer + 1 < len(self.weights):
                x = functional.relu(x)
            if layer < len(self.norms):
                scale, shift = self.norms[layer]
                x = functional.layer_norm(x, x.shape[-1:]) * scale + shift
        return x.transpose(0, 1).float()

    def clip(self, most: float) -> None:
        """Clip the gradient of every network by its own norm."""
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        copies = [g.movedim(1, 0) if g.ndim == 4 else g for g in grads]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in copies]).sum(0).sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1)
        for grad in copies:
            grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))


class Learner:
    """Networks, optimisers and environments of one run."""

    def __init__(self, sizes: Any) -> None:
        self.sizes, self.device = sizes, torch.device("cuda" if sizes.gpu else "cpu")
        torch.manual_seed(0)
        exact = sizes.precision != "tensorfloat32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        self.market = Market(sizes, self.device)
        own, whole = sizes.features + 1, sizes.features + 3 + AGENTS
        self.actor = Stack(AGENTS, own, sizes.actions, 0.01, sizes).to(self.device)
        shape = (1, whole, AGENTS) if sizes.central else (AGENTS, own, 1)
        self.critic = Stack(*shape, 1.0, sizes).to(self.device)
        groups = [
            {"params": list(self.actor.parameters()), "lr": sizes.lr_actor},
            {"params": list(self.critic.parameters()), "lr": sizes.lr_critic},
        ]
        self.optimiser = torch.optim.Adam(groups, eps=1e-5, fused=True)
        self.moments = torch.zeros(3, AGENTS, device=self.device)  # mean, square, weight

    def update(self) -> float:
        """Collect one rollout and learn from it; return its mean reward, bp a step."""
        half = self.sizes.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            batch, reward = self.collect()
            rows = len(batch["action"])
            for _ in range(self.sizes.num_epochs):
                order = torch.randperm(rows, device=self.device)
                for part in order.chunk(self.sizes.num_minibatches):
                    self.learn({name: values[part] for name, values in batch.items()})
        return float(reward)  # waits for the device

    @torch.no_grad()
    def collect(self) -> tuple[dict[str, Tensor], Tensor]:
        """Play one rollout; return its rows with advantages and targets, and the mean reward."""
        played: dict[str, list[Tensor]] = {}
        for _ in range(self.sizes.rollout_length):
            obs, state, mask = self.market.observe()
            logits = self.actor(obs).masked_fill(~mask, -1e9)
            log_probs = logits.log_softmax(-1)
            action = (log_probs - torch.empty_like(logits).exponential_().log()).argmax(-1)
            reward, terminated, truncated = self.market.step(action)
            after_obs, after_state, _ = self.market.observe()
            self.market.reset(terminated | truncated)
            row = {
                "obs": obs,
                "critic": state.unsqueeze(1) if self.sizes.central else obs,
                "next": after_state.unsqueeze(1) if self.sizes.central else after_obs,
                "mask": mask,
                "action": action,
                "log_prob": log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1),
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
            }
            for name, values in row.items():
                played.setdefault(name, []).append(values)
        rollout = {name: torch.stack(values) for name, values in played.items()}
        reward = rollout["reward"].mean()
        return self.prepare(rollout), reward

    def prepare(self, rollout: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return rows [B, …] with normalised advantages, values and targets."""
        value, following = self.values(rollout["critic"]), self.values(rollout.pop("next"))
        mean, deviation = self.scale()
        going = (~rollout.pop("terminated")).float().unsqueeze(-1)
        joined = going * (~rollout.pop("truncated")).float().unsqueeze(-1)
        ahead = self.sizes.gamma * going * (following * deviation + mean)
        delta = rollout.pop("reward") + ahead - (value * deviation + mean)
        advantage, last = torch.empty_like(delta), torch.zeros_like(delta[0])
        for t in reversed(range(len(delta))):
            last = delta[t] + self.sizes.gamma * self.sizes.gae_lambda * joined[t] * last
            advantage[t] = last
        returns = advantage + value * deviation + mean
        rollout["advantage"] = (advantage - advantage.mean((0, 1))) / (advantage.std((0, 1)) + 1e-8)
        rollout["value"], rollout["target"] = value, (returns - mean) / deviation
        seen = [returns.mean((0, 1)), returns.square().mean((0, 1)), torch.ones_like(mean)]
        self.moments.mul_(0.99).add_(torch.stack(seen), alpha=0.01)
        return {name: values.flatten(0, 1) for name, values in rollout.items()}

    def values(self, inputs: Tensor) -> Tensor:
        """Return normalised values [..., A] of critic inputs [..., C, G]."""
        return self.critic(inputs.flatten(0, -3)).reshape(*inputs.shape[:-2], AGENTS)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and deviation of returns, [A] each."""
        mean, square, weight = self.moments
        weight = torch.where(weight > 0, weight, 1)
        mean = mean / weight
        known = (square / weight - mean**2).clamp(min=1e-4).sqrt()
        return mean, torch.where(self.moments[2] > 0, known, 1)

    def learn(self, part: dict[str, Tensor]) -> None:
        """Take one step with a minibatch."""
        clip = self.sizes.clip_eps
        logits = self.actor(part["obs"]).masked_fill(~part["mask"], -1e9)
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, part["action"].unsqueeze(-1)).squeeze(-1)
        ratio = (chosen - part["log_prob"]).exp()
        gain = ratio * part["advantage"]
        gain = gain.minimum(ratio.clamp(1 - clip, 1 + clip) * part["advantage"])
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        value = self.critic(part["critic"]).reshape(-1, AGENTS)
        moved = part["value"] + (value - part["value"]).clamp(-clip, clip)
        errors = [functional.huber_loss(v, part["target"], "none", 10.0) for v in (value, moved)]
        each = -gain - self.sizes.ent_coef * entropy + torch.maximum(*errors)
        self.optimiser.zero_grad()
        each.mean(0).sum().backward()
        self.actor.clip(self.sizes.max_grad_norm)
        self.critic.clip(self.sizes.max_grad_norm)
        self.optimiser.step()

    def rate(self, seconds: float) -> float:
        """Return environment steps a second of at least one update."""
        began, count = time.perf_counter(), 0
        while not count or time.perf_counter() - began < seconds:
            self.update()
            count += 1
        steps = count * self.sizes.num_envs * self.sizes.rollout_length
        return steps / (time.perf_counter() - began)


def _choose_threads(learner: Learner, most: int) -> None:
    """Use the threads that are faster: one, or as many as there are cores."""
    fastest = dict.fromkeys({1, most}, 0.0)
    for _ in range(3):
        for threads, rate in fastest.items():
            torch.set_num_threads(threads)
            learner.update()  # what is slow at first is not counted
            fastest[threads] = max(rate, learner.rate(0))
    torch.set_num_threads(max(fastest, key=fastest.__getitem__))


def main() -> None:
    """Answer lines until there are no more."""
    sizes = SimpleNamespace(**json.loads(sys.stdin.readline()))
    if sizes.gpu and not torch.cuda.is_available():
        print("JAX uses a GPU that PyTorch does not see; install torch with CUDA.", flush=True)
        return
    learner = Learner(sizes)
    _choose_threads(learner, sizes.threads)
    print("ready", flush=True)
    for line in sys.stdin:
        print(learner.rate(float(line)), flush=True)


if __name__ == "__main__":
    main()
