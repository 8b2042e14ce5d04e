"""A directory of ours read by others: transformers replies as we do, lm-eval agrees.

Needs torch (`pip install 'xpo_jax[peft]'` has it), and for some lm-eval; skipped where
they are missing.
"""

import json

import jax
import numpy as np
import pytest

from tests import tiny_policy
from xpo_jax.data.records import Turn
from xpo_jax.evaluation import evaluate_run, lm_eval
from xpo_jax.models import hf_checkpoint, lora
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.lora import Adapter

torch = pytest.importorskip("torch", reason="needs torch: pip install 'xpo_jax[peft]'")
transformers = pytest.importorskip("transformers")

MESSAGES = ("hello", "is this film good?", "the plot", "what was bad", "and why")
TOKENS = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A model whose adapter is merged, as `xpo export --merged` writes it."""
  folder = tmp_path_factory.mktemp("policies")
  base = hf_checkpoint.load(tiny_policy.write(folder / "base"))
  adapter = Adapter(rank=2)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda weight: rng.normal(size=weight.shape).astype(np.float32) / 2,
    lora.weights(base.config, adapter),
  )
  hf_checkpoint.save_adapter(
    folder / "adapter",
    base.config,
    adapter,
    params={"lm": params},
    base=base.params["lm"],
    base_name=str(folder / "base"),
  )
  return evaluate_run.export(folder / "adapter", folder / "merged", merged=True)


def test_transformers_gives_the_same_greedy_replies(directory):
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.AutoModelForCausalLM.from_pretrained(directory)
  prompts = [(Turn("user", message),) for message in MESSAGES]
  ours = evaluate_run.generate(
    directory, prompts, GenerationConfig(TOKENS, greedy=True)
  )
  for message, (text,) in zip(MESSAGES, ours, strict=True):
    ids = tokenizer.apply_chat_template(
      [{"role": "user", "content": message}],
      add_generation_prompt=True,
      return_tensors="pt",
      return_dict=False,
    )
    out = model.generate(ids, do_sample=False, max_new_tokens=TOKENS)
    both = tokenizer.decode(out[0], skip_special_tokens=True)
    prompt = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert both == prompt + text
  assert len({text for (text,) in ours}) > 1


@pytest.fixture(scope="module")
def models(directory):
  """lm-eval's own model of the directory, and our adapter of it."""
  huggingface = pytest.importorskip("lm_eval.models.huggingface")
  theirs = huggingface.HFLM(
    pretrained=str(directory), dtype="float32", device="cpu", batch_size=2
  )
  return theirs, lm_eval.adapter(directory, batch=2)


def test_a_task_has_the_same_numbers_through_lm_evals_own_model(models, tmp_path):
  rows = [
    {
      "text": f"the film {n}",
      "options": [" was good", " was a bad one", "s"],
      "gold": n,
    }
    for n in range(3)
  ]
  data = tmp_path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "tiny.yaml").write_text(
    "task: tiny_live\ndataset_path: json\n"
    f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
    "test_split: test\noutput_type: multiple_choice\n"
    'doc_to_text: "{{text}}"\ndoc_to_choice: "{{options}}"\ndoc_to_target: gold\n'
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
  )
  settings = lm_eval.Settings(include_path=str(tmp_path))
  found = [lm_eval.run(model, ["tiny_live"], settings) for model in models]
  theirs, ours = (one["results"]["tiny_live"] for one in found)
  assert ours["acc,none"] == theirs["acc,none"]
  assert ours["acc_norm,none"] == theirs["acc_norm,none"]


def test_log_likelihoods_and_generation_are_those_of_lm_evals_own_model(models):
  instance = pytest.importorskip("lm_eval.api.instance").Instance

  def requests(kind, *arguments):
    return [instance(kind, {}, one, n) for n, one in enumerate(arguments)]

  pairs = requests(
    "loglikelihood",
    ("this film", " was good"),
    ("this ", "is bad"),
    ("a", " plot of it"),
  )
  theirs, ours = (model.loglikelihood(pairs) for model in models)
  np.testing.assert_allclose(
    [logp for logp, _ in ours], [logp for logp, _ in theirs], atol=1e-4
  )
  assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
  options = {"until": ["zz"], "do_sample": False, "max_gen_toks": TOKENS}
  contexts = requests("generate_until", ("this film", options), ("the plot", options))
  theirs, ours = (model.generate_until(contexts) for model in models)
  assert ours == theirs
