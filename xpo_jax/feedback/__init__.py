"""Feedback on texts: reward models, judges, rules. Text in, numbers out."""
