"""Toy records and a bandit that can be solved exactly, for doctests, notebooks, tests.

Imports `ops` and `scored` alone.
"""
