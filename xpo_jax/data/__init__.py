"""Turns records into fixed-shape batches: reading, tokenising, packing, auditing.

May be imported from `models` onwards; imports `types` alone, no model and no
experiment.
"""
