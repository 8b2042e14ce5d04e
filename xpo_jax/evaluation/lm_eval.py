"""Runs public tasks of EleutherAI's lm-eval on a policy; an extra of the package.

`evaluate` runs tasks by name. `adapter` gives the policy as a model of lm-eval, for its
own functions (`lm_eval.simple_evaluate(model=adapter("RUN"), ...)`). Log-likelihoods
are of the scorer that objectives use, generation is by the sampler of rollouts.

Tokens are those of lm-eval's own Hugging Face model: the tokenizer's special tokens
before a context, spaces at the end of a context moved to the continuation. They differ
in `loglikelihood_rolling`, which here scores the text's own tokens alone, each once, as
lm-eval's interface asks; its Hugging Face model also scores a BOS that the tokenizer
adds. The template of a run's data (`Template.before`, `between`) is not used.
"""

import collections
import difflib
import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.data import sealed_files
from xpo_jax.data.tokenise import Example
from xpo_jax.evaluation import evaluate_run
from xpo_jax.feedback import tokenised_texts
from xpo_jax.feedback.tokenised_texts import TextBatch
from xpo_jax.models import generate as generation
from xpo_jax.models import hf_checkpoint, score, transformer
from xpo_jax.models.generate import Batching
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.hf_checkpoint import Checkpoint
from xpo_jax.ops import token_stats
from xpo_jax.ops.head import reductions
from xpo_jax.train.state import Policy
from xpo_jax.types import Array, Layout, Params, Reduced, TokenStat

FILE = "lm_eval.json"
MAX_COMPLETION_TOKENS = 256  # of a task that names none, as of lm-eval's own models
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("until", "do_sample", "temperature", "top_k", "top_p")
_MIN_WIDTH = 32  # tokens


class Settings(NamedTuple):
  """How tasks are run.

  Attributes:
    limit: number of documents of each task; None: all.
    num_fewshot: examples before each document; None: the task's own number.
    include_path: a folder with tasks of one's own, or None.
    chat: whether prompts are rendered by the tokenizer's chat template.
  """

  limit: int | None = None
  num_fewshot: int | None = None
  include_path: str | None = None
  chat: bool = False


def evaluate(
  directory: str | Path,
  tasks: Sequence[str],
  *,
  limit: int | None = None,
  num_fewshot: int | None = None,
  include_path: str | Path | None = None,
  chat: bool = False,
  batch: int = 16,
) -> dict[str, dict[str, Any]]:
  """Runs tasks of lm-eval on a run's policy, or on a Hugging Face directory.

  Args:
    directory: a finished run, into which lm_eval.json is written, or a checkpoint.
    tasks: names of lm-eval's tasks or groups.
    limit: number of documents of each task; None: all.
    num_fewshot: examples before each document; None: the task's own number.
    include_path: a folder with tasks of one's own (YAML). A task may run code, its
      `!function` tags.
    chat: whether prompts are rendered by the tokenizer's chat template.
    batch: texts per forward pass, prompts per decoding batch.

  Returns:
    task -> lm-eval's "metric,filter" -> value.

  Raises:
    ImportError: lm-eval is not installed.
    ValueError: an unknown task, a limit below 1, an unfinished run, or `chat` and no
      chat template.
  """
  folder = None if include_path is None else str(include_path)
  settings = Settings(limit, num_fewshot, folder, chat)
  task_manager(tasks, settings)  # refuses unknown tasks before the weights are read
  model = adapter(directory, batch=batch)
  found = run(model, tasks, settings)
  about = {"lm_eval": importlib.metadata.version("lm_eval"), "limit": limit}
  about |= {"num_fewshot": num_fewshot, "apply_chat_template": chat}
  about["truncated texts"] = model.truncated
  if evaluate_run.is_run(directory):
    content = {name: found[name] for name in ("results", "versions", "n-samples")}
    sealed_files.write_json(Path(directory) / FILE, {"about": about, **content})
  return found["results"]


def task_manager(tasks: Sequence[str], settings: Settings) -> Any:
  """Makes lm-eval's index of tasks.

  Raises:
    ImportError: lm-eval is not installed.
    ValueError: an unknown task, a limit below 1, no such folder.
  """
  limit, folder = settings.limit, settings.include_path
  if limit is not None and limit < 1:
    raise ValueError(f"limit is {limit}; it must be at least 1, or None for all")
  lm_eval = _lm_eval()
  if folder is not None and not Path(folder).is_dir():
    raise ValueError(f"include_path: {folder} is no directory")
  manager = lm_eval.tasks.TaskManager(include_path=folder)
  _check_tasks(tasks, manager.all_tasks)
  return manager


def run(
  model: "HarnessModel", tasks: Sequence[str], settings: Settings
) -> dict[str, Any]:
  """Runs tasks on an adapted model; returns what lm-eval's `simple_evaluate` does.

  Raises:
    ValueError: as `task_manager`; `chat` and no chat template.
  """
  manager = task_manager(tasks, settings)
  if settings.chat and not model.tokenizer.chat_template:
    raise ValueError(
      f"{model.tokenizer_name} has no chat template; evaluate without chat"
    )
  return _lm_eval().simple_evaluate(
    model=model,
    tasks=list(tasks),
    task_manager=manager,
    log_samples=False,
    limit=settings.limit,
    num_fewshot=settings.num_fewshot,
    apply_chat_template=settings.chat,
    fewshot_as_multiturn=settings.chat,
  )


def of_policy(policy: Policy, *, batch: int = 16) -> "HarnessModel":
  """Adapts a policy of a running run as a model of lm-eval.

  Raises:
    ImportError: lm-eval is not installed.
  """
  checkpoint = Checkpoint(policy.model.config, policy.params, policy.tokenizer)
  name = f"the policy after step {policy.step}"
  return _adapted(checkpoint, name, batch, policy.template.arguments)


def adapter(directory: str | Path, *, batch: int = 16) -> "HarnessModel":
  """Loads a run's policy or a checkpoint as a model of lm-eval (its class `LM`).

  Raises:
    ImportError: lm-eval is not installed.
    ValueError: an unfinished run; no tokenizer.
  """
  _lm_eval()
  checkpoint = hf_checkpoint.load(evaluate_run.policy_dir(directory))
  if checkpoint.tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")
  return _adapted(
    checkpoint, str(directory), batch, evaluate_run.template_of(directory).arguments
  )


def _adapted(
  checkpoint: Checkpoint, name: str, batch: int, arguments: Mapping[str, Any]
) -> "HarnessModel":
  adapted = type("XpoLM", (HarnessModel, _lm_eval().api.model.LM), {})
  return adapted(checkpoint, name, batch=batch, arguments=arguments)


class HarnessModel:
  """The methods that lm-eval calls on a model; `adapter` adds its base class.

  A request has `args`: (context, continuation), (text,) or (context, arguments).

  Attributes:
    tokenizer: of the policy.
    truncated: number of texts cut at their start so far, because they are longer than
      `Config.positions`, as lm-eval's own models cut them.
  """

  def __init__(
    self,
    checkpoint: Checkpoint,
    name: str,
    *,
    batch: int = 16,
    arguments: Mapping[str, Any] | None = None,
  ):
    super().__init__()
    self._arguments = dict(arguments or {})  # of the chat template
    self.tokenizer = checkpoint.tokenizer
    self._name = name
    self.truncated = 0
    self._model = transformer.model(checkpoint.config)
    self._params = jax.device_put(checkpoint.params["lm"])
    self._positions = checkpoint.config.positions
    self._batch = batch

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Computes log p(continuation | context) in nats, and whether it is greedy.

    An empty context is the prefix token (BOS, or EOS where there is none).

    Raises:
      ValueError: a continuation without tokens of its own.
    """
    texts = []
    for request in requests:
      context, continuation = request.args
      prompt, tokens = self._encode_pair(context, continuation)
      if not tokens:
        raise ValueError(
          f"continuation {continuation!r} of {context[-80:]!r} has no tokens of its own"
        )
      texts.append((prompt, tokens))
    return [(float(logp), bool(greedy)) for logp, greedy in self._score(texts)]

  def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
    """Computes log p(text) in nats, the first token given the prefix token.

    A text longer than `Config.positions` is scored in windows of that many tokens, each
    token once, with as much context as fits.
    """
    windows, owner = [], []
    for number, request in enumerate(requests):
      (text,) = request.args
      ids = self.tokenizer.encode(text, add_special_tokens=False)
      new = rolling_windows([self._prefix, *ids], self._positions)
      windows += new
      owner += [number] * len(new)
    logp_N = self._score(windows)[:, 0] if windows else np.zeros(0)
    return np.bincount(owner, logp_N, minlength=len(requests)).tolist()

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Generates a completion of each context, up to a stop string or EOS.

    The completion is drawn to its end and cut at the first stop string, which is left
    out. Greedy, unless the arguments ask for samples at a temperature above 0; the n-th
    request is drawn with row number n (`models.generate`).

    Raises:
      ValueError: an argument that the sampler does not have.
    """
    groups = collections.defaultdict(list)
    for number, request in enumerate(requests):
      groups[json.dumps(request.args[1], sort_keys=True)].append(number)
    texts = {}
    for arguments, numbers in groups.items():
      config, stops = generation_config(json.loads(arguments))
      room = self._positions - config.max_completion_tokens
      if room < 1:
        raise ValueError(
          f"a completion of {config.max_completion_tokens} tokens leaves no room for "
          f"its context: the model has {self._positions} positions"
        )
      prompts = [self._last(self._encode(requests[n].args[0]), room) for n in numbers]
      width = tokenised_texts.padded_width(max(map(len, prompts)), _MIN_WIDTH)
      drawn = generation.generate(
        self._model,
        self._params,
        prompts,
        tokenizer=self.tokenizer,
        config=config,
        key=jax.random.key(0),
        row_B=numbers,
        batching=Batching(self._batch, prompt_width=min(width, room)),
      )
      for number, (text,) in zip(numbers, drawn.texts_BK, strict=True):
        texts[number] = until(text, stops)
    return [texts[number] for number in range(len(requests))]

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """Renders messages; without a generation prompt the last message goes on."""
    return self.tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
      **self._arguments,
    )

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The tokenizer's template, which lm-eval records; None where it is not used."""
    return self.tokenizer.chat_template if chat_template else None

  @property
  def tokenizer_name(self) -> str:
    """The directory; lm-eval names caches of requests by it."""
    return self._name

  @property
  def _prefix(self) -> int:
    bos = self.tokenizer.bos_token_id
    return self.tokenizer.eos_token_id if bos is None else bos

  def _encode(self, text: str) -> list[int]:
    """Encodes a text; special tokens are added unless it spells the prefix token."""
    spelled = text.startswith(self.tokenizer.decode([self._prefix]))
    return self.tokenizer.encode(text, add_special_tokens=not spelled) or [self._prefix]

  def _encode_pair(
    self, context: str, continuation: str
  ) -> tuple[list[int], list[int]]:
    stripped = context.rstrip()
    if not stripped:
      ids = self.tokenizer.encode(context + continuation, add_special_tokens=False)
      # A prefix that the continuation spells is not repeated.
      return [self._prefix], ids[1:] if ids[:1] == [self._prefix] else ids
    whole = self._encode(context + continuation)
    prompt = self._encode(stripped)
    return prompt, whole[len(prompt) :]

  def _last(self, ids: list[int], count: int) -> list[int]:
    """The last tokens; counts a text that is cut."""
    self.truncated += len(ids) > count
    return ids[-count:]

  def _score(self, texts: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """Log-prob and whether it is greedy of each (prompt, tokens), `[N, 2]`."""
    examples = []
    for number, (prompt, tokens) in enumerate(texts):
      # The last token is predicted only, and needs no position.
      ids = self._last([*prompt, *tokens], self._positions + 1)
      cut = len(ids) - len(tokens)
      if cut < 1:
        raise ValueError(
          f"a continuation has {len(tokens)} tokens; the model has {self._positions} "
          "positions"
        )
      parts = (np.array(part, np.int32) for part in (ids[:cut], ids[cut:]))
      before, after = parts
      examples.append(Example(str(number), before, (after,), Layout.DEMO))
    run = functools.partial(_sums, self._model, self._params)
    return tokenised_texts.map_batches(examples, self._batch, run)


def rolling_windows(
  ids: Sequence[int], positions: int
) -> list[tuple[list[int], list[int]]]:
  """Cuts tokens into (context, tokens to predict), each but the first predicted once.

  Args:
    ids: the prefix token and the tokens of a text.
    positions: tokens of a window's input.

  Example:
    >>> rolling_windows([0, 1, 2, 3, 4, 5], 3)
    [([0], [1, 2, 3]), ([2, 3], [4, 5])]
  """
  windows = []
  for start in range(1, len(ids), positions):
    end = min(start + positions, len(ids))
    windows.append(
      (list(ids[max(end - 1 - positions, 0) : start]), list(ids[start:end]))
    )
  return windows


def until(text: str, stops: Sequence[str]) -> str:
  """The text before the first of the stop strings.

  Example:
    >>> until("4. Question: 3", ["Question:", "."])
    '4'
  """
  ends = [text.index(stop) for stop in stops if stop and stop in text]
  return text[: min(ends, default=len(text))]


def generation_config(
  arguments: Mapping[str, Any],
) -> tuple[GenerationConfig, list[str]]:
  """Translates a task's generation arguments; returns the stop strings beside them.

  Raises:
    ValueError: an argument that the sampler does not have, or two limits.
  """
  unknown = sorted(set(arguments) - {*_LIMITS, *_SAMPLING})
  if unknown:
    raise ValueError(
      f"generation argument {unknown[0]}={arguments[unknown[0]]!r}: the sampler has "
      f"{sorted((*_LIMITS, *_SAMPLING))}; change the task's generation_kwargs"
    )
  limits = {name: arguments[name] for name in _LIMITS if name in arguments}
  if len(limits) > 1:
    raise ValueError(f"generation arguments {limits}: give one limit of tokens")
  stops = arguments.get("until") or []
  temperature = float(arguments.get("temperature") or 0.0)
  sampled = arguments.get("do_sample")
  if sampled is None:
    sampled = temperature > 0
  if sampled and "temperature" not in arguments:
    temperature = 1.0
  sampling: dict[str, Any] = {"greedy": True}
  if sampled and temperature > 0:
    # 0 turns top-k off in transformers.
    top = {name: arguments.get(name) or None for name in ("top_k", "top_p")}
    sampling = {"temperature": temperature, **top}
  longest = int(next(iter(limits.values()), MAX_COMPLETION_TOKENS))
  config = GenerationConfig(longest, **sampling)
  return config, [stops] if isinstance(stops, str) else list(stops)


def _lm_eval() -> Any:
  try:
    import lm_eval  # an extra, and slow to import
    import lm_eval.api.model
    import lm_eval.tasks
  except ImportError as error:
    raise ImportError(
      "public tasks need the package lm-eval: pip install 'xpo_jax[lm-eval]'"
    ) from error
  return lm_eval


def _check_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
  for name in tasks:
    if name not in known:
      near = difflib.get_close_matches(name, known, 3)
      raise ValueError(
        f"lm-eval has no task {name!r}; "
        + (f"did you mean {near}? " if near else "")
        + "tasks of your own are found by include_path (--include-path)"
      )


def _greedy(roles: Mapping[str, Array], target_C: Array) -> Array:
  likeliest_C = jnp.argmax(roles["policy"], axis=-1)
  return (likeliest_C == target_C).astype(jnp.float32)


def _greedy_by_blocks(top: tuple[Array, Array], target_C: Array) -> Array:
  _, ids_C1 = top
  return (ids_C1[..., 0] == target_C).astype(jnp.float32)


_GREEDY = TokenStat(
  "greedy_BKT",
  ("policy",),
  _greedy,
  Reduced((reductions.Top(reductions.Logits("policy"), 1),), _greedy_by_blocks),
)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: transformer.Model, params: Params, rows: TextBatch) -> Array:
  # The last token of a text is no input.
  inputs = transformer.Rows.plain(rows.tokens_RL[:, :-1], rows.mask_RL[:, 1:])
  stats = score.token_statistics(
    {"policy": model.hidden(params, inputs)},
    {"policy": model.head(params)},
    rows.tokens_RL[:, 1:],
    (token_stats.LOGP, _GREEDY),
    softcaps={"policy": model.softcap},
  )
  response_RL = rows.response_RL[:, 1:]
  logp_R = jnp.where(response_RL, stats["logp_BKT"], 0).sum(1)
  greedy_R = jnp.where(response_RL, stats["greedy_BKT"], 1).min(1)
  return jnp.stack([logp_R, greedy_R], axis=1)
