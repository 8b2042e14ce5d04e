"""Many runs, one question: sentiment, comparison, multi-stage, frontier.

Imported by the command line and by `experiments/`; imports everything before it.
"""
