"""Recipes that ship with the package: the demo's study, and what it shares."""
