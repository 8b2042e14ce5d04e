"""Reads rows from files and data sets of other makers: tables, TFDS, the hub's.

`sources` turns rows into records; `schemas` knows the columns of known data sets. May
be imported where `data` may be; imports `data` and `types` alone.
"""
