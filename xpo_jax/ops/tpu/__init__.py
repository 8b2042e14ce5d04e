"""Pallas kernels of TPUs for operations of this folder's parent.

`chip` holds what kernels have in common, `attention` the attention by blocks. Imports
`types` and `ops` only.
"""
