"""A pretrained chat model on the sentiment of its own samples.

Prompts, pairs that the model wrote itself, and runs of any objective on them; the
reward is VADER's, so that what is learned is known. Recipes and cells of tables import
from here.
"""
