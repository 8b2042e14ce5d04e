"""Preference optimisation in JAX: pure objectives, one sharded trainer."""
