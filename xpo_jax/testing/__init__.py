"""Toy records and an exactly solvable bandit, for doctests, notebooks and tests.

May be imported from `survey` onwards; imports only `ops`, `scored` and `types`.
"""
