"""The maths that losses are made of: pure functions of arrays.

May be imported from everywhere; imports `types` alone.
"""
