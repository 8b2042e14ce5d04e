"""Meshes, the table of logical axes, and where parameters and batches live."""
