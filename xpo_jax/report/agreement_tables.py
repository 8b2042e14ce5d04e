"""Tabulates the agreement of a judge or reward model with held-out labels."""

from typing import Any

from xpo_jax.evaluation import bootstrap
from xpo_jax.report import html

_MEASURES = {
  "accuracy": "fraction of pairs ordered as labelled",
  "accuracy_longer": "the same where the labels prefer the longer answer",
  "accuracy_shorter": "the same where they prefer the shorter",
  "log_loss": "-log P(better answer), nats; 0.693 is chance",
  "length": "sign agreement with length: 1, the longer always wins; -1, the shorter",
  "length_labels": "the same of the labels",
}


def tables(content: dict[str, Any]) -> list[html.Table]:
  """Builds the tables of the content of agreement.json (`agreement.plain`)."""
  rows = [
    [_MEASURES[name], str(bootstrap.read(x))] for name, x in content["measures"].items()
  ]
  rows += [
    ["calibration error (ECE)", f"{content['calibration_error']:.3f}"],
    ["questions", f"{content['questions']:,}"],
    ["abstained", f"{content['abstained']:,}"],
  ]
  bins = [
    [f"{b['confidence']:.3f}", str(bootstrap.read(b["right"])), f"{b['questions']:,}"]
    for b in content["reliability"]
  ]
  return [
    html.Table(
      ("", "held-out labels"),
      rows,
      "Mean with its 95 % bootstrap interval over prompts. Lengths in characters.",
    ),
    html.Table(
      ("confidence", "fraction correct", "questions"),
      bins,
      "Reliability: calibrated where the first two columns are the same.",
    ),
  ]
