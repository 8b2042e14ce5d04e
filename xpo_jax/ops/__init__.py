"""Building blocks of losses and decoders: masked sums, links, divergences, returns,
rankings; attention and mixtures of experts.

Pure functions of arrays. Every other folder may import it; it imports only `types`.
"""
