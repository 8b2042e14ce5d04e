"""Policies along training on the reward-KL plane, several runs at once."""
