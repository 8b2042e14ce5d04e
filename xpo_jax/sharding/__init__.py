"""Sharding: device meshes, rules for logical axes, placement, several processes.

May be imported from `data` and `models` onwards; imports only `types`.
"""
