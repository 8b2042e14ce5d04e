"""Experiments: the step, the offline trainer, evaluation, the report."""
