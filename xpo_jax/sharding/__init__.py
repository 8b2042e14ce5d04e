"""Sharding: device meshes, rules for logical axes, how weights are held and multiplied,
several processes.

May be imported from `data` and `models` onwards; imports only `types`.
"""
