"""Adapters against PEFT itself: it reads ours, and we read its, with equal logits.

Needs torch and peft (`pip install 'xpo_jax[peft]'`); skipped where they are missing.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from xpo_jax.models import hf_checkpoint, lora, transformer
from xpo_jax.models.lora import Adapter
from xpo_jax.ops import capping

_REASON = "needs torch and peft: pip install 'xpo_jax[peft]'"
torch = pytest.importorskip("torch", reason=_REASON)
theirs = pytest.importorskip("peft", reason=_REASON)
transformers = pytest.importorskip("transformers")

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.npz"))
TOKENS = np.random.default_rng(0).integers(3, 60, (2, 9))
ATOL = 2e-5
FORMS = [{}, {"rslora": True}, {"dora": True}]


def torch_base(directory):
  return transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager"
  )


def torch_logits(model):
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def logits_of(config, lm):
  model = transformer.model(config)
  rows = transformer.Rows.plain(TOKENS, np.ones_like(TOKENS))
  return capping.soft_cap(model.hidden(lm, rows) @ model.head(lm).T, model.softcap)


logits = jax.jit(logits_of, static_argnums=0)


def targets(name, form):
  """The layers that PEFT adapts in this form; None: all."""
  experts = hf_checkpoint.read_config(FIXTURES / name).experts
  return "q_proj|k_proj|v_proj|o_proj" if experts and "dora" in form else None


def save(directory, base, adapter):
  """Saves a random adapter on a fixture; returns the fixture and its parameters."""
  held = hf_checkpoint.load(base)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda weight: (rng.normal(size=weight.shape) / 8).astype(np.float32),
    lora.weights(held.config, adapter),
  )
  hf_checkpoint.save_adapter(
    directory,
    held.config,
    adapter,
    params={"lm": params},
    base=held.params["lm"],
    base_name=str(base),
  )
  return held, params


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_peft_computes_our_adapter(name, form, tmp_path):
  adapter = Adapter(rank=3, alpha=5.0, targets=targets(name, form) or ".*", **form)
  held, params = save(tmp_path / "ours", FIXTURES / name, adapter)
  model = theirs.PeftModel.from_pretrained(
    torch_base(FIXTURES / name), tmp_path / "ours"
  )
  before = logits(held.config, held.params["lm"])
  ours = logits(held.config, lora.attach(held.params["lm"], params, adapter))
  assert np.abs(ours - before).max() > 1e-2
  np.testing.assert_allclose(torch_logits(model), ours, atol=ATOL)


def test_transformers_loads_a_directory_of_ours_by_itself(tmp_path):
  adapter = Adapter(rank=2, targets="query|value")
  held, params = save(tmp_path / "ours", FIXTURES / "llama", adapter)
  ours = logits(held.config, lora.attach(held.params["lm"], params, adapter))
  model = torch_base(tmp_path / "ours")  # finds the base by its name
  np.testing.assert_allclose(torch_logits(model), ours, atol=ATOL)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_adapter_that_peft_made_is_read(name, form, tmp_path):
  torch.manual_seed(0)
  only = targets(name, form)
  config = theirs.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=rf".*\.({only})" if only else "all-linear",
    **{f"use_{option}": value for option, value in form.items()},
    init_lora_weights=False,
    task_type="CAUSAL_LM",
  )
  model = theirs.get_peft_model(torch_base(FIXTURES / name), config)
  magnitudes = [x for n, x in model.named_parameters() if "magnitude" in n]
  assert bool(magnitudes) == ("dora" in form)
  for magnitude in magnitudes:  # else the norms, which change nothing
    magnitude.data *= 0.75 + torch.rand_like(magnitude) / 2
  model.save_pretrained(tmp_path / "theirs")
  adapted = hf_checkpoint.load_adapted(tmp_path / "theirs")
  assert {name: vars(adapted.adapter)[name] for name in form} == form
  lm = lora.attach(adapted.base.params["lm"], adapted.params, adapted.adapter)
  model.eval()
  np.testing.assert_allclose(
    logits(adapted.base.config, lm), torch_logits(model), atol=ATOL
  )
  merged = hf_checkpoint.load(tmp_path / "theirs")
  np.testing.assert_allclose(
    logits(merged.config, merged.params["lm"]), torch_logits(model), atol=ATOL
  )


def test_gradient_of_dora_equals_pefts(tmp_path):
  adapter = Adapter(rank=2, targets="query|down", dora=True)
  held, params = save(tmp_path / "ours", FIXTURES / "llama", adapter)
  weight = np.random.default_rng(2).normal(size=(*TOKENS.shape, held.config.vocab))

  base = jax.device_put(held.params["lm"])

  def loss(params):
    lm = lora.attach(base, params, adapter)
    return (logits_of(held.config, lm) * weight).mean()

  ours = jax.jit(jax.grad(loss))(params)["blocks"]
  model = theirs.PeftModel.from_pretrained(
    torch_base(FIXTURES / "llama"), tmp_path / "ours", is_trainable=True
  )
  of_peft = model(torch.tensor(TOKENS)).logits
  (of_peft * torch.tensor(weight, dtype=torch.float32)).mean().backward()
  grads = {n: x.grad.numpy() for n, x in model.named_parameters() if x.requires_grad}
  leaves = {"a": "lora_A", "b": "lora_B", "m": "lora_magnitude_vector"}
  for part, module in (("query", "q_proj"), ("down", "down_proj")):
    for leaf, tensor in leaves.items():
      for layer, own in enumerate(ours[part][leaf]):
        name = f"layers.{layer}.", f"{module}.{tensor}."
        (grad,) = (x for n, x in grads.items() if all(piece in n for piece in name))
        size = np.abs(grad).max()
        assert size > 1e-5
        own = own.reshape(grad.T.shape) if leaf != "b" else own.reshape(len(own), -1)
        np.testing.assert_allclose(own.T, grad, atol=1e-4 * size)


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
  """A Gemma 3 with images, of random weights."""
  text = json.loads((FIXTURES / "gemma3" / "config.json").read_text())
  vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
  vision |= {"num_attention_heads": 1, "image_size": 28, "patch_size": 14}
  config = transformers.Gemma3Config(
    text_config=transformers.Gemma3TextConfig(**text),
    vision_config=vision,
    mm_tokens_per_image=1,
    image_token_index=62,
    boi_token_index=60,
    eoi_token_index=61,
  )
  torch.manual_seed(0)
  model = transformers.Gemma3ForConditionalGeneration(config)
  directory = tmp_path_factory.mktemp("nested") / "gemma3"
  model.save_pretrained(directory)
  return directory


def test_peft_finds_the_modules_of_a_decoder_within_a_larger_model(nested, tmp_path):
  adapter = Adapter(rank=2, targets="q_proj|v_proj|up_proj")
  held, params = save(tmp_path / "ours", nested, adapter)
  ours = logits(held.config, lora.attach(held.params["lm"], params, adapter))
  model = theirs.PeftModel.from_pretrained(torch_base(nested), tmp_path / "ours")
  np.testing.assert_allclose(torch_logits(model), ours, atol=ATOL)
  adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
  assert len(adapted) == 3 * held.config.layers  # and none of the vision tower


def test_peft_adapter_on_a_decoder_within_a_larger_model_is_read(nested, tmp_path):
  torch.manual_seed(1)
  config = theirs.LoraConfig(
    r=2,
    target_modules=r".*language_model.*\.(q_proj|down_proj)",
    init_lora_weights=False,
  )
  model = theirs.get_peft_model(torch_base(nested), config)
  model.save_pretrained(tmp_path / "theirs")
  model.eval()
  merged = hf_checkpoint.load(tmp_path / "theirs")
  np.testing.assert_allclose(
    logits(merged.config, merged.params["lm"]), torch_logits(model), atol=ATOL
  )
