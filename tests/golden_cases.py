"""The golden cases: loading, running and comparing them.

`golden/README.md` says where the numbers come from.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import golden_adapters
from tests.golden_adapters import exceptions

_COMMITTED = Path(__file__).with_name("golden")
FOLDER = Path(os.environ.get("XPO_GOLDEN") or _COMMITTED)
# The tables of exceptions and of methods are about the committed cases alone.
IS_COMMITTED = FOLDER.resolve() == _COMMITTED.resolve()


def _load() -> dict[str, dict]:
  if not any(FOLDER.glob("*.json")):
    raise FileNotFoundError(
      f"XPO_GOLDEN={FOLDER}: no *.json there; name a folder of cases, or unset it"
    )
  cases = {}
  for path in sorted(FOLDER.glob("*.json")):
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
      cases[f"{path.stem}:{case['id']}"] = case
  return cases


CASES = _load()
COMPARED = [
  name
  for name, case in CASES.items()
  if case["method"] in golden_adapters.ADAPTERS and name not in exceptions.CASES
]
# Codes with rounding errors, in units of epsilon: some compute 1 - sigmoid(x), less
# accurate than sigmoid(-x); one log(softmax), not exactly 0 for equal models; means of
# whitened advantages and gradients of two whitened tokens are 0 up to rounding; a
# softmax of two log-ratios (ours) underflows before a sigmoid (theirs).
_ROUNDED = {
  "kto": 1,
  "apo_zero": 1,
  "apo_down": 1,
  "infonca_pair": 1,
  "ltr_lambdaLoss": 1,
  "tdpo1": 2,
  "tdpo2": 2,
  "ppo_loss": 1,
  "masked_whiten": 1,
  "rloo_advantages": 1,
  "rloo_loss": 1,
}
# Methods whose adapters choose by value, on the host; so do all of texts and of ragged
# lists.
_ON_HOST = {
  "outcome_advantages_verl",
  "rlhflow_pair_selection",
  "sppo_pair_construction",
}
# Inputs with a shorter name among the gradients of a case.
_FULL_NAME = {"reward_diff": "reward_diff_first_minus_second"}
_NUMBERS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
# Inputs that count, index or mask; all others are real even where a case writes 1 or 0.
_WHOLE = re.compile(r"ids|labels?|mask|targets|index|rank|len|picked|^tokens$|_token$")


def _array(value: Any) -> Any:
  """Nested lists of numbers as an array; ragged lists and texts stay lists."""
  if isinstance(value, dict):
    return {key: _array(one) for key, one in value.items()}
  if not isinstance(value, list):
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
  parts = [_array(one) for one in value]
  if any(isinstance(one, (str, list, dict)) or one is None for one in parts):
    return parts
  if len({np.shape(one) for one in parts}) > 1:
    return parts
  return np.array(parts)


def _inputs(case: dict) -> dict:
  """Converts lists to arrays; an array without rows gets its width back."""
  x = {name: _array(value) for name, value in case["inputs"].items()}
  for name, value in x.items():
    if isinstance(value, np.ndarray) and not _WHOLE.search(name):
      x[name] = value.astype(np.float64)
  arrays = [v.shape[1:] for v in x.values() if isinstance(v, np.ndarray)]
  width = max(arrays, key=len, default=())
  for name, value in x.items():
    if isinstance(value, np.ndarray) and value.size == 0 and name.endswith("logps"):
      x[name] = value.reshape(0, *width)
  return x


def _gradients(case: dict, x: dict) -> dict:
  """The recorded gradients, by the name of their input."""
  gradients = {}
  for key, value in case["expected"].items():
    if key in ("grads", "grad_of_mean_loss"):
      value = value or {}
      gradients |= {
        name.removesuffix("_of_SUM_over_batch"): g for name, g in value.items()
      }
    elif key.startswith("grad_"):
      stem = key.removeprefix("grad_")
      names = [n for n in (stem, f"{stem}_logps", f"{stem}_token_logps") if n in x]
      if names:
        gradients[names[0]] = value
  gradients = {_FULL_NAME.get(name, name): value for name, value in gradients.items()}
  return {name: value for name, value in gradients.items() if name in x}


def _compare(actual: Any, expected: Any, case: dict, what: str) -> None:
  if isinstance(expected, dict):
    for key, value in expected.items():
      _compare(actual[key], value, case, f"{what}/{key}")
    return
  if isinstance(expected, list) and expected and isinstance(expected[0], dict):
    for i, one in enumerate(expected):
      _compare(actual[i], one, case, f"{what}/{i}")
    return
  expected = _array(expected)
  if isinstance(expected, list):  # ragged, or texts
    assert list(actual) == expected, what
    return
  actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
  if case["compare"] == "finite entries":
    finite = np.isfinite(expected)
    actual, expected = actual[finite], expected[finite]
  assert actual.shape == expected.shape or actual.size == expected.size == 0, what
  if expected.size:
    lost = np.finfo(np.float64).eps * _ROUNDED.get(case["method"], 0)
    np.testing.assert_allclose(actual, expected, case["rtol"], lost, err_msg=what)


def compute(names: Sequence[str]) -> list[tuple[dict, dict]]:
  """Outputs and gradients of some cases of a method, as one program if it can be."""
  inputs = {name: _inputs(CASES[name]) for name in names}
  recorded = {name: _gradients(CASES[name], x) for name, x in inputs.items()}
  on_host = {
    name
    for name, x in inputs.items()
    if not recorded[name]
    and (
      CASES[name]["method"] in _ON_HOST or any(isinstance(v, list) for v in x.values())
    )
  }
  traced = [name for name in names if name not in on_host]

  def one(name: str, arrays: dict, wanted: dict) -> tuple[dict, dict]:
    if not wanted:
      return _adapter(name)(CASES[name]["hyperparams"], inputs[name] | arrays), {}

    def scalar(wanted: dict) -> tuple[jax.Array, dict]:
      out = _adapter(name)(CASES[name]["hyperparams"], inputs[name] | arrays | wanted)
      return out["differentiate"], out

    (_, out), gradient = jax.value_and_grad(scalar, has_aux=True)(wanted)
    return out, gradient

  def every(arrays: list[dict], wanted: list[dict]) -> list[tuple]:
    return list(map(one, traced, arrays, wanted))

  with jax.enable_x64(True):
    arrays = {
      name: {k: jnp.asarray(v) for k, v in x.items() if isinstance(v, np.ndarray)}
      for name, x in inputs.items()
    }
    wanted = [
      {k: arrays[name][k].astype(jnp.float64) for k in recorded[name]}
      for name in traced
    ]
    results = {name: one(name, arrays[name], {}) for name in on_host}
    if traced:
      done = jax.jit(every)([arrays[name] for name in traced], wanted)
      results |= dict(zip(traced, jax.device_get(done), strict=True))
  return [results[name] for name in names]


def _adapter(name: str) -> Callable[[dict, dict], dict]:
  return golden_adapters.ADAPTERS[CASES[name]["method"]][0]


def compare(case: dict, out: dict, gradient: dict) -> None:
  """AssertionError where a value or a gradient is off, or one is not compared."""
  elsewhere = exceptions.VALUES.get(case["method"], {})
  recorded = _gradients(case, _inputs(case))
  for name, expected in case["expected"].items():
    if name in elsewhere or expected is None:
      continue
    if name in out and name.startswith("grad_"):
      _compare(out[name], expected, case, name)
      continue
    if name in ("grads", "grad_of_mean_loss") or name.startswith("grad_"):
      assert recorded, f"{name}: its input is missing"
      continue
    if f"log {name}" in out:
      out = out | {name: np.exp(out[f"log {name}"])}
    assert name in out, f"{name} is expected and no adapter returns it"
    _compare(out[name], expected, case, name)
  for name, expected in recorded.items():
    _compare(gradient[name], expected, case, f"gradient of {name}")
