"""A directory with an untrained model, and its tokenizer with a chat template."""

import jax

from xpo_jax.data import synthetic_reviews
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Config

TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
  "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(directory):
  """Writes it and returns the directory."""
  texts = [prompt + text for prompt, text in synthetic_reviews.generate(60, 0)]
  tokenizer = synthetic_reviews.train_bpe(texts, 300)
  tokenizer.chat_template = TEMPLATE
  config = Config(
    vocab=300, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8
  )
  params = {"lm": transformer.model(config).init(jax.random.key(0))}
  return hf_checkpoint.save(directory, config, params, tokenizer=tokenizer)
