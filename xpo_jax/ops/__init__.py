"""Building blocks of the losses: masked sums, links, divergences, returns, rankings.

Pure functions of arrays. Every other folder may import it; it imports only `types`.
"""
