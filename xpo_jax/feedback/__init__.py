"""Scores texts and preferences between them: reward models, judges, rules.

May be imported from `config` onwards; imports models and data, never an experiment.
"""
