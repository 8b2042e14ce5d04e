"""Reward models in the form of transformers: what is written, how others' are read."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from xpo_jax.data import records, synthetic_reviews
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Limits
from xpo_jax.evaluation import evaluate_run
from xpo_jax.feedback import critic, reward_model, tokenised_texts
from xpo_jax.models import heads, hf_checkpoint, transformer
from xpo_jax.models.config import Config
from xpo_jax.ops.kl_control import Affine

CONFIG = Config(
  vocab=300,
  width=8,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=4,
  mlp_width=16,
  positions=256,
  remat="none",
)
TEXTS = synthetic_reviews.generate(5, seed=0)
PROMPTS, COMPLETIONS = (list(column) for column in zip(*TEXTS, strict=True))
# As ChatML: the line's end follows each message, also the last.
CHAT = (
  "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
TURNS = (
  records.Turn("user", PROMPTS[0]),
  records.Turn("assistant", COMPLETIONS[0]),
  records.Turn("user", PROMPTS[1]),
)
TALK = records.Conversation(TURNS)


@pytest.fixture(scope="module")
def params():
  lm, head = jax.random.split(jax.random.key(0))
  lm = jax.tree.map(lambda x: 2 * x, transformer.model(CONFIG).init(lm))
  return {"lm": lm, "value": heads.init_reward_head(head, CONFIG.width)}


@pytest.fixture(scope="module")
def tokenizer():
  tokenizer = synthetic_reviews.train_bpe([f"{p}{y}" for p, y in TEXTS], CONFIG.vocab)
  tokenizer.chat_template = CHAT
  return tokenizer


@pytest.fixture
def save(params, tokenizer, tmp_path):
  """Saves a reward model of ours."""

  def make(affine=Affine(1.0, 0.0), kind=reward_model.REWARD):
    directory = tmp_path / "own"
    hf_checkpoint.save(directory, CONFIG, params, tokenizer=tokenizer)
    reward_model.write_description(
      directory, Template("Q: ", "\nA:"), Limits(20, 9), affine=affine, kind=kind
    )
    return directory

  return make


@pytest.fixture(scope="module")
def of_others(params, tokenizer, tmp_path_factory):
  directory = tmp_path_factory.mktemp("of_others")
  hf_checkpoint.save_classifier(directory, CONFIG, params, tokenizer=tokenizer)
  return directory


def test_export_gives_the_same_rewards_and_weights(save, params, tmp_path):
  own = save()
  assert reward_model.export(own, tmp_path / "it") == 0
  mine, its = (reward_model.scorer(str(x)) for x in (own, tmp_path / "it"))
  expected = mine([*PROMPTS, TALK], [*COMPLETIONS, "yes"]).value_N
  np.testing.assert_array_equal(
    its([*PROMPTS, TALK], [*COMPLETIONS, "yes"]).value_N, expected
  )
  assert np.ptp(expected) > 0.1
  written = load_file(tmp_path / "it" / "model.safetensors")
  kernel_D = params["value"]["kernel_D"]
  np.testing.assert_array_equal(written["score.weight"], kernel_D[None])


def test_export_folds_the_gain_and_keeps_the_constant_apart(save, params, tmp_path):
  own = save(Affine(2.5, -0.75))
  assert reward_model.export(own, tmp_path / "it") == -0.75
  written = load_file(tmp_path / "it" / "model.safetensors")
  kernel_D = np.asarray(params["value"]["kernel_D"])
  np.testing.assert_array_equal(written["score.weight"][0], np.float32(2.5) * kernel_D)
  mine, its = (reward_model.scorer(str(x)) for x in (own, tmp_path / "it"))
  np.testing.assert_allclose(
    its(PROMPTS, COMPLETIONS).value_N, mine(PROMPTS, COMPLETIONS).value_N, atol=2e-6
  )


def _turn(role, content):
  return {"role": role, "content": content}


@pytest.mark.parametrize("template", [CHAT, f"\n {CHAT}\n", f"{CHAT} \n\n"])
def test_exported_template_renders_the_tokens_of_training(
  save, tokenizer, template, tmp_path
):
  tokenizer = copy.deepcopy(tokenizer)
  tokenizer.chat_template = template
  own = save()
  (own / "chat_template.jinja").write_text(template)
  reward_model.export(own, tmp_path / "it")
  exported = AutoTokenizer.from_pretrained(tmp_path / "it")
  messages = [_turn(x.role, x.content) for x in TURNS] + [_turn("assistant", "yes")]
  ids = exported.apply_chat_template(messages, return_dict=False)
  (example,) = tokenised_texts.to_examples(
    [TALK], ["yes"], tokenizer, template=Template(), limits=Limits()
  )
  assert ids == [*example.prompt, *example.completions[0]]
  assert ids[-1] == tokenizer.eos_token_id
  prompt = exported.apply_chat_template(
    messages[:-1], add_generation_prompt=True, tokenize=False
  )
  assert prompt == tokenizer.apply_chat_template(
    messages[:-1], add_generation_prompt=True, tokenize=False
  )


def test_padding_that_is_eos_becomes_another_special_token(save, tmp_path):
  own = save()
  path = own / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "</s>"}))
  reward_model.export(own, tmp_path / "it")
  config = json.loads((tmp_path / "it" / "config.json").read_text())
  exported = AutoTokenizer.from_pretrained(tmp_path / "it")
  assert config["pad_token_id"] == exported.pad_token_id != exported.eos_token_id


def test_others_are_read_where_the_chat_template_ends(of_others, params, tokenizer):
  prompts = [PROMPTS[0], TALK]
  answers = ["good", "bad film"]
  reward_N = reward_model.scorer(str(of_others))(prompts, answers).value_N
  talks = [(records.Turn("user", PROMPTS[0]),), TURNS]
  for reward, talk, answer in zip(reward_N, talks, answers, strict=True):
    messages = [_turn(x.role, x.content) for x in talk] + [_turn("assistant", answer)]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokenizer.decode(ids).endswith("\n")  # no EOS of ours
    rows = transformer.Rows.plain(jnp.array([ids]), jnp.ones((1, len(ids)), bool))
    hidden_RLD = transformer.model(CONFIG).hidden(params["lm"], rows)
    expected = np.asarray(hidden_RLD)[0, -1] @ np.asarray(params["value"]["kernel_D"])
    np.testing.assert_allclose(reward, expected, atol=2e-6)


def test_completion_that_was_cut_is_read_where_it_was(tokenizer):
  cut, ended = tokenised_texts.to_chat_examples(
    [PROMPTS[0]] * 2, [records.Cut("good film"), "good film"], tokenizer
  )
  cut, ended = (tokenizer.decode(x.completions[0]) for x in (cut, ended))
  assert cut.endswith("good film") and ended == cut + "\n"


def test_others_without_a_chat_template_are_refused(params, tokenizer, tmp_path):
  plain = synthetic_reviews.train_bpe(["a film"], CONFIG.vocab)
  hf_checkpoint.save_classifier(tmp_path, CONFIG, params, tokenizer=plain)
  with pytest.raises(ValueError, match=r"no chat template.*write_description"):
    reward_model.scorer(str(tmp_path))
  reward_model.write_description(tmp_path, Template(), Limits())
  reward_model.scorer(str(tmp_path))(PROMPTS, COMPLETIONS)


def test_critic_starts_from_others_and_from_an_export(
  of_others, save, params, tokenizer, tmp_path
):
  reward_model.export(save(), tmp_path / "it")
  for directory in (of_others, tmp_path / "it"):
    critic.check(directory)
    loaded = critic.load(directory, tokenizer, CONFIG)
    np.testing.assert_array_equal(
      loaded.params["value"]["kernel_D"], params["value"]["kernel_D"]
    )


def test_others_are_no_preference_models_and_are_exported_already(of_others, tmp_path):
  with pytest.raises(ValueError, match="a preference model is needed"):
    reward_model.load(of_others, kind=reward_model.PREFERENCE)
  with pytest.raises(ValueError, match="reads already"):
    reward_model.export(of_others, tmp_path / "it")


def test_command_exports_a_reward_model_and_copies_a_preference_model(
  save, tmp_path, capsys
):
  own = save(Affine(1.0, 0.25))
  evaluate_run.export(own, tmp_path / "it")
  assert "0.25 more than the score" in capsys.readouterr().out
  assert hf_checkpoint.is_classifier(tmp_path / "it")
  reward_model.write_description(
    own, Template(), Limits(), kind=reward_model.PREFERENCE
  )
  evaluate_run.export(own, tmp_path / "other")
  names = [{file.name for file in x.iterdir()} for x in (own, tmp_path / "other")]
  assert names[0] == names[1]


def test_text_beyond_the_last_position_is_refused(params, tokenizer):
  config = Config(**vars(CONFIG) | {"rotary": None, "positions": 4})
  held = reward_model.RewardModel(
    transformer.model(config), params, tokenizer, Template(), Limits()
  )
  with pytest.raises(ValueError, match="the reward model 4 positions"):
    reward_model.to_scorer(held)(PROMPTS, COMPLETIONS)
