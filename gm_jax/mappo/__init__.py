"""Multi-agent PPO: networks, rollout, advantages, losses and the training program."""
