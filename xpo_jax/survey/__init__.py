"""The survey as data: its table of systems, the 13 directions, a page per objective.

Imported by the command line and the docs; imports objectives and what they are made of,
never models, data or training.
"""
