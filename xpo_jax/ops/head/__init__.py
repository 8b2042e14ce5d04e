"""Reduces logits over the vocabulary, from hidden states and heads, block by block.

`reductions` says what is summed over a vocabulary and how blocks are added up and
differentiated; `blocks` walks over a head with them. Imports `types` and `ops` only.
"""
