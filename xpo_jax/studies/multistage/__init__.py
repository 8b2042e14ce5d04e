"""Recipes of several stages: sampling, labels, reward models, policies."""
