"""Records to fixed-shape batches: sources, tokens, layouts, packing, an audit.

May be imported from `models` onwards; imports `types` alone, no model and no
experiment.
"""
