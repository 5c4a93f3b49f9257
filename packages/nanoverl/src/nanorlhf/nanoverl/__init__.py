"""SFT, PPO and GRPO with one-step off-policy rollouts."""
