"""Directories of `*ForSequenceClassification`: names, values, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file

from xpo_jax.models import hf_checkpoint

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.npz"))
# transformers' MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, read with torch.
CLASSES = {
  "llama": "LlamaForSequenceClassification",
  "mistral": "MistralForSequenceClassification",
  "qwen2": "Qwen2ForSequenceClassification",
  "qwen3": "Qwen3ForSequenceClassification",
  "gemma": "GemmaForSequenceClassification",
  "gemma2": "Gemma2ForSequenceClassification",
  "gemma3_text": "Gemma3TextForSequenceClassification",
  "olmo2": "Olmo2ForSequenceClassification",
  "olmo3": "Olmo3ForSequenceClassification",
  "smollm3": "SmolLM3ForSequenceClassification",
  "phi3": "Phi3ForSequenceClassification",
  "mixtral": "MixtralForSequenceClassification",
  "qwen3_moe": "Qwen3MoeForSequenceClassification",
  "gpt_oss": "GptOssForSequenceClassification",
  "gpt_neox": "GPTNeoXForSequenceClassification",
  "gpt2": "GPT2ForSequenceClassification",
}
HEADS = {"lm_head.weight", "embed_out.weight"}  # over the vocabulary


def small_tokenizer(pad="<pad>"):
  words = {"<s>": 0, "</s>": 1, "<pad>": 2, "good": 3, "film": 4}
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token=pad
  )


def save(directory, name, *, bias=0.0, pad="<pad>", **kwargs):
  """Saves a fixture with a head of numbers that all differ."""
  config, params, _ = hf_checkpoint.load(FIXTURES / name)
  kernel_D = np.arange(1, config.width + 1, dtype=np.float32) / 7
  head = {"kernel_D": kernel_D, "bias": np.float32(bias)}
  hf_checkpoint.save_classifier(
    directory,
    config,
    params | {"value": head},
    tokenizer=small_tokenizer(pad),
    **kwargs,
  )
  return params | {"value": head}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"granite"}))
def test_directory_holds_the_tensors_of_transformers_and_reads_back(name, tmp_path):
  params = save(tmp_path, name)
  of_torch = {}
  for file in (FIXTURES / name).glob("*.safetensors"):
    of_torch |= load_file(file)
  expected = {key: x for key, x in of_torch.items() if key not in HEADS}
  expected["score.weight"] = params["value"]["kernel_D"][None]
  written = load_file(tmp_path / "model.safetensors")
  assert written.keys() == expected.keys()
  for key, tensor in expected.items():
    np.testing.assert_array_equal(written[key], tensor, strict=True)
  hf = transformers.AutoConfig.from_pretrained(tmp_path)
  assert hf.architectures == [CLASSES[hf.model_type]]
  assert (hf.num_labels, hf.pad_token_id) == (1, 2)
  loaded = hf_checkpoint.load_classifier(tmp_path)
  lm = {key: x for key, x in params["lm"].items() if key != "head"}
  np.testing.assert_equal(loaded.params, {"lm": lm, "value": params["value"]})


def test_family_without_the_class_is_refused(tmp_path):
  with pytest.raises(ValueError, match="granite: transformers has no"):
    save(tmp_path / "it", "granite")
  assert not (tmp_path / "it").exists()


def test_shards_read_back(tmp_path):
  params = save(tmp_path, "llama", shard_bytes=20_000)
  assert len(list(tmp_path.glob("*.safetensors"))) > 1
  loaded = hf_checkpoint.load_classifier(tmp_path)
  np.testing.assert_equal(loaded.params["value"], params["value"])


def test_bias_of_the_head_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"bias 0\.5, score\.weight has none"):
    save(tmp_path, "llama", bias=0.5)


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_padding_that_ends_texts_is_refused(pad, tmp_path):
  with pytest.raises(ValueError, match="set pad_token to a token that ends no text"):
    save(tmp_path, "llama", pad=pad)


def edit(directory, **changes):
  path = directory / "config.json"
  content = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"id2label": {"0": "bad", "1": "good", "2": "best"}}, "has 3 labels"),
    ({"id2label": None}, "has 2 labels"),  # transformers' default
    ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassif"),
    ({"architectures": None}, "architectures is None"),
    ({"model_type": "deberta"}, "model_type is 'deberta'"),
  ],
)
def test_other_classes_and_labels_are_refused_by_name(changes, message, tmp_path):
  save(tmp_path, "llama")
  edit(tmp_path, **changes)
  with pytest.raises(ValueError, match=message):
    hf_checkpoint.load_classifier(tmp_path)


def test_classifier_is_no_start_of_a_policy(tmp_path):
  save(tmp_path, "llama")
  assert hf_checkpoint.is_classifier(tmp_path)
  assert not hf_checkpoint.is_classifier(FIXTURES / "llama")
  with pytest.raises(ValueError, match=r"LlamaForSequenceClassification.*no head over"):
    hf_checkpoint.load(tmp_path)


def test_weights_that_do_not_fit_are_listed_and_a_head_over_words_is_unused(tmp_path):
  params = save(tmp_path, "llama")
  path = tmp_path / "model.safetensors"
  tensors = load_file(path)
  save_file(tensors | {"lm_head.weight": params["lm"]["head"]}, path)
  hf_checkpoint.load_classifier(tmp_path)
  save_file(tensors | {"score.bias": np.ones(1, np.float32)}, path)
  with pytest.raises(ValueError, match=r"unexpected weight score\.bias"):
    hf_checkpoint.load_classifier(tmp_path)
  save_file({k: x for k, x in tensors.items() if k != "score.weight"}, path)
  with pytest.raises(ValueError, match=r"missing weight score\.weight"):
    hf_checkpoint.load_classifier(tmp_path)
