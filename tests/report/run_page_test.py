"""Charts against coordinates, pages against parsers, reports of hand-written runs."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import yaml

from xpo_jax import objectives
from xpo_jax.config import yaml_file
from xpo_jax.report import html as report_html
from xpo_jax.report import line_chart, run_page

SVG = "{http://www.w3.org/2000/svg}"


def _figure(*series, **options):
  return line_chart.Figure("Title <&>", "x", "y", series, **options)


def _points(root, tag="circle"):
  return [(float(e.get("cx")), float(e.get("cy"))) for e in root.iter(SVG + tag)]


def test_points_stand_where_the_axes_say():
  line = line_chart.Series("s", [0, 1, 2, 4], [0, 10, 20, 40], kind="points")
  figure = _figure(line, x_range=(0, 4), y_range=(0, 40))
  root = ET.fromstring(line_chart.svg(figure))
  points = np.array(_points(root)[1:])  # the first is the legend's
  # Equal steps in value are equal steps in pixels, y upwards.
  np.testing.assert_allclose(points[2] - points[1], points[1] - points[0], atol=0.02)
  np.testing.assert_allclose(
    points[3] - points[2], 2 * (points[1] - points[0]), atol=0.04
  )
  assert points[1][0] > points[0][0] and points[1][1] < points[0][1]
  labels = {e.text: e for e in root.iter(SVG + "text")}
  np.testing.assert_allclose(float(labels["4"].get("x")), points[3][0], atol=0.02)


def test_gaps_split_a_line_and_are_not_drawn():
  line = line_chart.Series("", [0, 1, 2, 3, 4, 5], [1, 2, math.nan, 4, 5, 6])
  root = ET.fromstring(line_chart.svg(_figure(line)))
  lines = [e.get("points").split() for e in root.iter(SVG + "polyline")]
  assert [len(points) for points in lines] == [2, 3]
  assert "nan" not in line_chart.svg(_figure(line))


def test_band_and_bars_follow_the_interval():
  band = line_chart.Series("b", [0, 1], [1, 2], low=[0, 1], high=[2, 3])
  root = ET.fromstring(line_chart.svg(_figure(band)))
  assert len(next(root.iter(SVG + "polygon")).get("points").split()) == 4
  bars = band._replace(kind="both", x_low=[-0.5, 0.5], x_high=[0.5, 1.5])
  root = ET.fromstring(line_chart.svg(_figure(bars)))
  assert sum("bar" in (e.get("class") or "") for e in root.iter(SVG + "line")) == 4


def test_labels_stay_within_the_chart():
  line = line_chart.Series("", [0, 1], [0, 1], kind="points", labels=["first", "last"])
  root = ET.fromstring(line_chart.svg(_figure(line)))
  sides = {e.text: e.get("text-anchor") for e in root.iter(SVG + "text")}
  assert sides["first"] == "start" and sides["last"] == "end"


def test_small_numbers_are_short():
  figure = _figure(line_chart.Series("", [0, 1], [0, 3e-4]), y_range=(0, 3.1e-4))
  root = ET.fromstring(line_chart.svg(figure))
  labels = {e.text for e in root.iter(SVG + "text")}
  assert {"1e-4", "3e-4", "0"} <= labels


def test_whole_numbers_have_no_halves_between_them():
  def ticks(x):
    root = ET.fromstring(line_chart.svg(_figure(line_chart.Series("", x, [0, 90]))))
    labels = [e for e in root.iter(SVG + "text") if e.get("text-anchor") == "middle"]
    return {e.text for e in labels} - {"x", "y"}

  assert ticks([1, 4]) == {"1", "2", "3", "4"}
  assert "1.5" in ticks([1, 3.9])


@pytest.mark.parametrize(
  "series",
  [
    (),
    (line_chart.Series("constant", [1, 2], [3, 3]),),
    (line_chart.Series("one", [1], [2]),),
    (line_chart.Series("none finite", [1, 2], [math.nan, math.inf]),),
    (line_chart.Series("zero", [0], [0]),),
  ],
)
def test_degenerate_series_still_draw(series):
  ET.fromstring(line_chart.svg(_figure(*series), standalone=True))


def test_series_of_unequal_lengths_are_refused():
  with pytest.raises(ValueError, match="lengths"):
    line_chart.svg(_figure(line_chart.Series("s", [1, 2], [1])))
  with pytest.raises(ValueError, match="kind"):
    line_chart.svg(_figure(line_chart.Series("s", [1], [1], kind="bar")))


@pytest.mark.parametrize(
  ("low", "high", "want"),
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (-3, 7, [-2, 0, 2, 4, 6]),
    (0.12, 0.19, [0.12, 0.14, 0.16, 0.18]),
    (0, 1200, [0, 500, 1000]),
  ],
)
def test_ticks_are_round(low, high, want):
  assert line_chart.ticks(low, high) == want


def test_condense_keeps_the_mean_and_short_curves_whole():
  y = np.random.default_rng(0).normal(size=1500)
  series = line_chart.condense(np.arange(1500), y, "s")
  assert len(series.x) == 150
  np.testing.assert_allclose(np.mean(series.y), y.mean())
  np.testing.assert_allclose(series.y[0], y[:10].mean())
  assert (series.low <= series.high).all()
  short = line_chart.condense([1, 2, 3], [1, math.nan, 3], "s")
  assert list(short.x) == [1, 3] and short.low is None


def _page():
  table = report_html.Table(
    ("a|b", "n"), [("<script>", 12345), ("x", 0.123456)], "caption"
  )
  return report_html.Page(
    "T & U",
    "lead with `code` and **weight**",
    [
      report_html.Section("One", [report_html.Text("first\n\nsecond <b>"), table]),
      report_html.Section(
        "Two",
        [
          report_html.Figures([_figure(line_chart.Series("s", [0, 1], [0.5, 1.5]))]),
          report_html.Callout("warning", "Name", "what"),
          report_html.Code("a < b"),
          report_html.Code("folded", "title"),
          report_html.Tokens("row", [("<s>", "prompt"), ("x", "loss"), ("y", "free")]),
        ],
      ),
      report_html.Section(
        "Three", [report_html.Text("[paper](https://arxiv.org/abs/2305.18290)")]
      ),
    ],
  )


class _Reader(html.parser.HTMLParser):
  """Checks that tags close and collects what could reach outside the file."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.outside = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ("meta", "link", "img", "br"):
      self.open.append(tag)
    attrs = dict(attrs)
    self.outside += [attrs[k] for k in ("src", "srcset", "data") if k in attrs]
    if tag == "link":
      self.outside.append(attrs.get("href"))

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_html_is_well_formed_escaped_and_needs_nothing_else():
  text = report_html.html(_page())
  reader = _Reader()
  reader.feed(text)
  assert not reader.open and not reader.outside
  assert "script" not in reader.tags and "&lt;script&gt;" in text
  assert "url(http" not in text and "@import" not in text
  assert "prefers-color-scheme: dark" in text
  assert "<code>code</code>" in text and "<strong>weight</strong>" in text
  assert 'href="https://arxiv.org/abs/2305.18290"' in text
  assert "12,345" in text and "0.1235" in text


def test_markdown_keeps_tables_in_their_cells():
  text = report_html.markdown(_page())
  assert "| a\\|b | n |" in text
  assert "| x | 0.1235 |" in text
  assert "0.5 to 1.5" in text
  assert "<s> [x] (y)" in text


def test_unknown_block_is_refused_with_the_allowed_ones():
  bad = report_html.Page("T", "", [report_html.Section("S", ["text"])])
  with pytest.raises(ValueError, match="allowed: Text, Table"):
    report_html.html(bad)


@pytest.mark.parametrize(
  ("name", "want"),
  [
    ("dpo", math.log(2)),
    ("kto", 0.5),  # (1 - sigma(0)) for either thumb, weights 1
    ("sft", None),
    ("simpo", None),
    ("orpo", None),
    ("bradley_terry", None),
  ],
)
def test_first_loss_is_what_no_margin_gives(name, want):
  loss = run_page.first_loss(objectives.build(name))
  assert loss is None if want is None else abs(loss - want) < 1e-6


@pytest.fixture
def run(tmp_path):
  config = {
    "format": yaml_file.FORMAT,
    "experiment": {
      "objective": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0},
      "data": {"path": "pairs.jsonl"},
      "seed": 0,
    },
    "versions": {"jax": "0"},
  }
  (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
  lines = [
    {
      "step": i + 1,
      "loss": math.log(2) - 0.001 * i,
      "loss/dpo": math.log(2) - 0.001 * i,
      "logp_chosen": -20 - 0.05 * i,
      "logp_rejected": -20 - 0.1 * i,
      "reward_accuracy": 0.6,
      "my_own": float(i),
      "time/seconds": 1.0,
    }
    for i in range(100)
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  return tmp_path


def test_bare_run_has_diagnoses_curves_and_how_to_reproduce(run):
  path = run_page.write(run)
  text = path.read_text()
  assert "Chosen log-prob falling" in text and "First loss as it must be" in text
  assert "Log-prob of the two sides" in text and "my_own" in text
  assert f"xpo resume {run}" in text
  assert "Samples" not in text and "Evaluation" not in text
  assert "Chosen log-prob falling" in (run / "report.md").read_text()


def test_full_run_shows_evaluation_samples_and_tokens(run):
  measure = {"mean": 0.5, "low": 0.4, "high": 0.6, "se": 0.05, "units": 8}
  bare = measure | {"low": None, "high": None}
  evaluation = {
    "about": {"prompts": 8},
    "policy": {"reward": measure, "distinct_2": bare},
    "reference": {"reward": measure, "distinct_2": bare | {"mean": 1.0}},
    "differences": {"reward": measure},
  }
  (run / "evaluation.json").write_text(json.dumps(evaluation))
  answer = {"text": " fine", "length": 2, "ended": False, "reward": 0.25}
  answers = [answer | {"model": "reference"}, answer | {"model": "policy"}]
  line = {"prompt": "p|q", "answers": answers, "chosen": "good"}
  (run / "samples.jsonl").write_text(json.dumps(line) + "\n")
  (run / "data.json").write_text(json.dumps({"rows": 3, "splits": {"train": 2}}))
  token = {"text": "a", "segment": 1, "branch": 0, "position": 0, "loss": False}
  shown = [[token, token | {"branch": 1, "loss": True}, token | {"branch": 1}]]
  (run / "shown.json").write_text(json.dumps(shown))
  text = run_page.write(run).read_text()
  assert "+0.500 [+0.400, +0.600]" in text
  assert "Repetition" in text  # half of the reference's distinct-2
  assert "fine … (reward 0.25)" in text and "good" in text
  for kind in ("prompt", "loss", "free"):
    assert f'<span class="{kind}">a</span>' in text
  assert '<span class="prompt">a</span><br><span class="loss">a</span>' in text


def test_what_is_not_read_of_the_data_is_said_without_markup(run):
  counts = {
    "rows": 4,
    "first_dropped": ["a.jsonl:1: identical: both are '**x** <b>'"],
    "unused_columns": {"system": 4},
  }
  (run / "data.json").write_text(json.dumps(counts))
  text = run_page.write(run).read_text()
  assert "columns that nothing reads: system (4 rows)" in text
  assert "**x** &lt;b&gt;" in text and "<strong>x" not in text
  assert "first_dropped" not in text


def test_report_is_the_same_when_written_again(run):
  first = run_page.write(run).read_bytes()
  assert run_page.write(run).read_bytes() == first


def test_line_that_is_being_written_is_named_and_a_damaged_one_refused(run):
  path = run / "metrics.jsonl"
  lines = path.read_bytes()
  path.write_bytes(lines + b'{"step": 101, "lo')
  assert "line 101 is incomplete and left out" in run_page.write(run).read_text()
  path.write_bytes(lines.replace(b'"step": 7,', b'"step": 7.', 1))
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 7 is not JSON"):
    run_page.write(run)
  path.write_bytes(lines.replace(b'"step": 7,', b'"step": 8,', 1))
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 7 is of step 8"):
    run_page.write(run)


@pytest.mark.parametrize("name", ["data.json", "evaluation.json", "samples.jsonl"])
def test_file_that_is_no_json_is_refused_by_name(run, name):
  (run / name).write_text('{"policy": ')
  with pytest.raises(ValueError, match=f"{name}.* is not JSON"):
    run_page.write(run)


def test_objective_of_another_version_is_noted_not_fatal(run):
  config = yaml.safe_load((run / "config.yaml").read_text())
  config["experiment"]["objective"] = {"name": "dpo", "gone": 1}
  (run / "config.yaml").write_text(yaml.safe_dump(config))
  assert "First loss not checked" in run_page.write(run).read_text()


def test_no_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match="is not a run"):
    run_page.write(tmp_path)


def test_study_is_written_where_asked(tmp_path):
  path = run_page.write_page(tmp_path / "new", _page())
  assert path.exists() and (tmp_path / "new" / "report.md").exists()
  assert len(re.findall("<svg", path.read_text())) == 1
