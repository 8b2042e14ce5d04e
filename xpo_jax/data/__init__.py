"""Records to fixed-shape batches: sources, tokens, layouts, packing, an audit."""
