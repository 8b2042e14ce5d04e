"""A directory with an untrained model, and its tokenizer with a chat template."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np

from xpo_jax.data import synthetic_reviews
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Config

TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
  "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


FIXTURES = Path(__file__).parent / "fixtures"
VOCAB = 300


@functools.cache
def _tokenizer():
  texts = [prompt + text for prompt, text in synthetic_reviews.generate(60, 0)]
  tokenizer = synthetic_reviews.train_bpe(texts, VOCAB)
  tokenizer.chat_template = TEMPLATE
  return tokenizer


def write_family(directory, name):
  """Writes one of a fixture's family, of random weights; returns the directory."""
  config = hf_checkpoint.read_config(FIXTURES / name)
  # transformers gives some families' tokenizers a token more.
  config = dataclasses.replace(config, vocab=VOCAB + 4, positions=256)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda weight: rng.normal(size=weight.shape).astype(np.float32) / 8,
    transformer.weights(config),
  )
  return hf_checkpoint.save(directory, config, {"lm": params}, tokenizer=_tokenizer())


def write(directory):
  """Writes it and returns the directory."""
  config = Config(
    vocab=VOCAB, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8
  )
  params = {"lm": transformer.model(config).init(jax.random.key(0))}
  return hf_checkpoint.save(directory, config, params, tokenizer=_tokenizer())


def write_pairs(file, number):
  """Writes so many pairs of synthetic reviews, less those of one text, as JSON lines;
  returns the rows."""
  texts, others = (synthetic_reviews.generate(number, seed) for seed in (0, 1))
  rows = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for (prompt, chosen), (_, rejected) in zip(texts, others, strict=True)
    if chosen != rejected
  ]
  write_rows(file, rows)
  return rows


def write_rows(file, rows):
  """Writes rows as JSON lines."""
  file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
