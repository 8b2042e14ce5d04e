"""Recipes of papers: what to run, with which command, and what to expect.

A wheel holds this folder as `xpo_jax.experiments`. Recipes are found by name, from
`xpo_jax.studies.find_recipe`; they import the package, never each other.
"""
