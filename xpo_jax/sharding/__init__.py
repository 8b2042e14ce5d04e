"""Meshes, the table of logical axes, placement, several hosts.

May be imported from `data` and `models` onwards; imports `types` alone.
"""
