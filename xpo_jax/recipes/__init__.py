"""Recipes that ship with the package: the demo's study, and what it shares."""

import os

# As in `cli`, for scripts that import recipes: that torch is missing is no news here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
