"""Policies along online runs on the reward-KL plane."""
