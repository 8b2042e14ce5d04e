"""Runs of objectives in worlds whose measures are exact: no model, seconds of CPU."""
