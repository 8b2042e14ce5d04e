"""Makes evaluations for `Loop.evaluator`: functions of the policy of a run."""

from collections.abc import Mapping
from typing import Any

from xpo_jax.evaluation import lm_eval
from xpo_jax.train.state import Evaluator, Policy


def tasks(
  names: tuple[str, ...] = (),
  limit: int | None = None,
  num_fewshot: int | None = None,
  chat: bool = False,
  batch: int = 16,
) -> Evaluator:
  """Makes an evaluation by tasks of lm-eval (the extra `lm-eval`).

  Its numbers are `TASK/METRIC`, and `TASK/METRIC,FILTER` where the task filters
  completions; standard errors are left out.

  Args:
    names: of lm-eval's own tasks or groups.
    limit: number of documents of each task; None: all.
    num_fewshot: examples before each document; None: the task's own number.
    chat: whether prompts are rendered by the tokenizer's chat template.
    batch: texts per forward pass, prompts per decoding batch.

  Raises:
    ImportError: lm-eval is not installed.
    ValueError: no task, an unknown one, or a limit below 1.
  """
  if not names:
    raise ValueError("evaluators.tasks: names is (); name at least one task of lm-eval")
  settings = lm_eval.Settings(limit, num_fewshot, chat=chat)
  lm_eval.task_manager(names, settings)  # refuses unknown tasks before a run

  def evaluate(policy: Policy) -> dict[str, float]:
    model = lm_eval.of_policy(policy, batch=batch)
    results = lm_eval.run(model, names, settings)["results"]
    return {
      f"{task}/{metric}": value
      for task, values in results.items()
      for metric, value in _numbers(values).items()
    }

  return evaluate


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  """The metrics of a task: lm-eval's "metric,filter" without the filter "none"."""
  return {
    key.removesuffix(",none"): value
    for key, value in values.items()
    if "," in key and "_stderr," not in key and isinstance(value, int | float)
  }
