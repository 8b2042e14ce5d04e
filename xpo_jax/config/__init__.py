"""Defines a run as values: experiment, optimiser, YAML, command line.

May be imported from `train` onwards; imports objectives, data and model configs, never
what runs them.
"""
