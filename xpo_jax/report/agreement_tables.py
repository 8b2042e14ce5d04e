"""Tables of a judge's or reward model's agreement with held-out labels."""

from typing import Any

from xpo_jax.report import html

_MEASURES = {
  "accuracy": "pairs ordered as the labels have them",
  "accuracy_longer": "of these, where the labels prefer the longer answer",
  "accuracy_shorter": "where they prefer the shorter",
  "log_loss": "-log P(better answer), nats; 0.693 knows nothing",
  "length": "verdict with length: 1, the longer always wins; -1, the shorter",
  "length_labels": "the same of the labels",
}


def tables(content: dict[str, Any]) -> list[html.Table]:
  """Tables of what `agreement.plain` made."""

  def cell(x: dict[str, Any]) -> str:
    if x["low"] is None:
      return f"{x['mean']:.3f}"
    return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"

  rows = [[_MEASURES[name], cell(x)] for name, x in content["measures"].items()]
  rows += [
    ["calibration error (ECE)", f"{content['calibration_error']:.3f}"],
    ["questions", f"{content['questions']:,}"],
    ["abstained", f"{content['abstained']:,}"],
  ]
  bins = [
    [f"{b['confidence']:.3f}", cell(b["right"]), f"{b['questions']:,}"]
    for b in content["reliability"]
  ]
  return [
    html.Table(
      ("", "held-out labels"),
      rows,
      "Mean with its 95 % bootstrap interval over prompts. Lengths in characters.",
    ),
    html.Table(
      ("confidence", "right", "questions"),
      bins,
      "Reliability: calibrated where the first two columns are the same.",
    ),
  ]
