"""Rewards and preferences on texts: reward models, judges, rules. Text in, numbers out.

May be imported from `config` onwards; imports models and data, never an experiment.
"""
