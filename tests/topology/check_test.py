"""`xpo check --topology`: by arithmetic on GPUs, with what it refuses."""

import dataclasses

import jax
import pytest

from tests.models.transformer_test import GPT2, LLAMA, packed
from tests.train.tiny_runs import PLAIN
from xpo_jax import cli
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Limits
from xpo_jax.config.experiment import MeshShape, Scratch
from xpo_jax.models import lora, transformer
from xpo_jax.models.config import Activation, Config, Experts, QKNorm, Rotary
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import llama
from xpo_jax.topology import check, programs, slices

SMALL = Config(
  vocab=512,
  width=64,
  layers=2,
  heads=8,
  kv_heads=8,
  head_dim=8,
  mlp_width=128,
  compute_dtype="bfloat16",
)
RUN = dataclasses.replace(
  llama.dpo("8B", "pairs.jsonl", None, rows=8), start=Scratch(SMALL)
)


@pytest.fixture(scope="module")
def report():
  return check.check(RUN, "h100:8")


def test_arguments_are_eight_bytes_a_parameter(report):
  step = next(one for one in report.figures if one.program.name == "step")
  state = step.program.arguments[0]
  held = programs.device_bytes((state.params, state.opt_state))
  count = sum(x.size for x in state.params["lm"]["blocks"]["up"].values())
  kernel = state.params["lm"]["blocks"]["up"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 128) and count
  parameters = 2 * 512 * 64 + 2 * (64 * (4 * 64 + 3 * 128)) + 5 * 64
  assert held == parameters * 8 / 8 + 4  # and the count of the steps


def test_the_reference_pass_needs_a_third_of_the_step(report):
  least = {one.program.name: one.least for one in report.figures}
  assert least["step"] == pytest.approx(3 * least["reference pass"])


def test_lines_say_what_fits(report):
  text = "\n".join(check.lines(report))
  assert report.fits and not report.advice
  for part in (
    "h100:8: 8 chips, data 1 x fsdp 8",
    "remat full; per chip",
    "8.00 bytes a trained parameter",
  ):
    assert part in text
  assert "fits: " in text and "arithmetic" in text


def test_what_does_not_fit_says_what_would():
  large = dataclasses.replace(
    RUN, start=Scratch(dataclasses.replace(llama.config("70B"), remat="none"))
  )
  large = dataclasses.replace(large, precision=type(large.precision)())
  report = check.check(large, "a100-40gb:8")
  text = "\n".join(check.lines(report))
  assert not report.fits and "does not fit" in text
  for part in ("precision.moments bfloat16 saves 32.", "larger slice", "remat none;"):
    assert part in text
  (full,) = (line for line in report.advice if "start.model.remat full saves" in line)
  (dots,) = (line for line in report.advice if "start.model.remat dots saves" in line)
  assert float(full.split()[-2]) > float(dots.split()[-2]) > 0


NEOX = dataclasses.replace(
  GPT2,
  activation=Activation.GELU,
  rotary=Rotary(fraction=0.5),
  parallel_residual=True,
  tied=False,
)
OLMO = dataclasses.replace(LLAMA, pre_norm=False, post_norm=True, qk_norm=QKNorm.WIDTH)
MIXTURE = dataclasses.replace(LLAMA, experts=Experts(count=4, active=2))


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("adapter", [None, Adapter(rank=3), Adapter(targets="key|up")])
@pytest.mark.parametrize("config", [LLAMA, GPT2, NEOX, OLMO, MIXTURE])
def test_kept_activations_are_those_of_the_traced_program(config, adapter, remat):
  model = transformer.model(dataclasses.replace(config, remat=remat))
  base = jax.eval_shape(model.init, jax.random.key(0))
  params, join = base, lambda base, own: own
  if adapter is not None:
    adapted = lora.attached_model(model, adapter)
    params = jax.eval_shape(
      lora.trainable_model(model, adapter).init, jax.random.key(0)
    )
    join = lambda base, own: lora.attach(base, own, adapter)  # noqa: E731
    model = adapted

  def loss(own, base):
    hidden, _ = transformer.states(model, join(base, own), packed())
    return hidden.std()

  traced = jax.jit(jax.value_and_grad(loss)).trace(params, base)
  # What the forward loop over layers keeps it returns: [layers, 1, 14 tokens, ...].
  forward = next(e for e in traced.jaxpr.jaxpr.eqns if e.primitive.name == "scan")
  stacked = [x.aval for x in forward.outvars[forward.params["num_carry"] :]]
  size = sum(x.size for x in stacked if x.shape[:3] == (config.layers, 1, 14))
  expected = check.kept_width(config, remat, adapter)
  assert size == config.layers * 14 * expected


def test_base_of_adapters_in_bfloat16_takes_two_bytes_a_weight():
  narrow = dataclasses.replace(RUN.precision, base="bfloat16")
  adapted = dataclasses.replace(RUN, adapter=Adapter(rank=2))
  held = []
  for run in (adapted, dataclasses.replace(adapted, precision=narrow)):
    figures = check.check(run, "h100:8").figures
    step = next(one for one in figures if one.program.name == "step")
    held.append(programs.device_bytes(step.program.arguments[1]["base"]))
  matrices = 2 * 512 * 64 + 2 * (64 * (4 * 64 + 3 * 128))
  assert held[0] - held[1] == 2 * matrices / 8


def test_base_of_adapters_in_4_bits_takes_half_a_byte_a_weight_and_its_scales():
  adapted = dataclasses.replace(RUN, adapter=Adapter(rank=2))
  held = {}
  for base in ("bfloat16", "nf4"):
    precision = dataclasses.replace(RUN.precision, base=base)
    run = dataclasses.replace(adapted, precision=precision)
    step = check.check(run, "h100:8").figures[0].program
    held[base] = programs.device_bytes(step.arguments[1]["base"])
  kernels = 2 * (64 * (4 * 64 + 3 * 128))
  # Eight devices do not divide one block of 64 inputs: those scales are whole.
  whole = 2 * (3 * 64 + 2 * 128)  # of query, key, value; of up and gate
  split = 2 * (8 * 64 + 2 * 64)  # of output, blocks of its 8 heads; of down
  scales = 2 * (whole + split / 8)
  assert held["bfloat16"] - held["nf4"] == (2 - 0.5) * kernels / 8 - scales


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"mesh": MeshShape(fsdp=3)}, r"mesh is .*'fsdp': 3.* for the 8 chips of h100:8"),
    ({"mesh": MeshShape(data=1, fsdp=4, tensor=2), "rows": 6}, "multiple of 4"),
    ({"limits": None}, r"Data.limits are prompt=None .* set both"),
    ({"row_length": 100}, r"row_length is 100, a group at the limits has 1024 \+ 2 x"),
  ],
)
def test_bad_input_is_refused(changes, message):
  data = RUN.data
  if "limits" in changes:
    data = dataclasses.replace(data, limits=type(data.limits)())
  if "rows" in changes:
    data = dataclasses.replace(data, rows_per_step=changes["rows"])
  if "row_length" in changes:
    data = dataclasses.replace(data, row_length=changes["row_length"])
  run = dataclasses.replace(RUN, data=data, mesh=changes.get("mesh", RUN.mesh))
  with pytest.raises(ValueError, match=message):
    check.check(run, "h100:8")


def test_the_command_refuses_a_slice_that_does_not_exist(capsys):
  assert cli.main(["check", "dpo_llama", "--topology", "v5e:3x5"]) == 2
  assert "v5e:16x16" in capsys.readouterr().err


ON_SAMPLES = experiments.replace(
  PLAIN,
  start=Scratch(SMALL),
  prompts=dataclasses.replace(PLAIN.data.prompts, limits=Limits(prompt=8)),
  prompts_per_iteration=8,
  sampling=dataclasses.replace(PLAIN.data.sampling, prompts_at_once=5),
  mesh=MeshShape(data=1, fsdp=4, tensor=2),
)


def test_the_sampler_runs_on_the_mesh_of_the_run():
  """Prompts are split by rows, weights as they are trained."""
  sampler = check.check(ON_SAMPLES, "h100:8").figures[0].program
  decoder, prompt_BP, *_ = sampler.arguments
  assert sampler.name == "sampler" and dict(decoder.mesh.shape)["fsdp"] == 4
  assert prompt_BP.shape == (8, 8)  # five, rounded up
  assert prompt_BP.sharding.shard_shape(prompt_BP.shape) == (2, 8)
  kernel = decoder.params[0]["blocks"]["up"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 64 // 4, 128 // 2)


def test_the_sampler_runs_on_a_mesh_of_its_own_beside_the_state():
  to_sample = dataclasses.replace(
    ON_SAMPLES.data.sampling, mesh=MeshShape(tensor=2), weights_dtype="bfloat16"
  )
  own, shared = (
    check.check(run, "h100:8")
    for run in (experiments.replace(ON_SAMPLES, sampling=to_sample), ON_SAMPLES)
  )
  sampler = own.figures[0].program
  decoder, prompt_BP, *_ = sampler.arguments
  assert prompt_BP.sharding.shard_shape(prompt_BP.shape) == (2, 8)
  kernel = decoder.params[0]["blocks"]["up"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 64, 128 // 2)
  # The policy is not what is sampled from, so it is there besides.
  policy = programs.device_bytes(own.figures[-1].program.arguments[0].params)
  assert sampler.beside - shared.figures[0].program.beside == policy
  assert any("sampler on data 4 x fsdp 1 x tensor 2" in x for x in check.lines(own))


def test_a_sampling_mesh_that_the_slice_does_not_hold_is_refused():
  sampling = dataclasses.replace(ON_SAMPLES.data.sampling, mesh=MeshShape(tensor=3))
  with pytest.raises(ValueError, match=r"Sampling.mesh is .*--data.sampling.mesh.fsdp"):
    check.check(experiments.replace(ON_SAMPLES, sampling=sampling), "h100:8")


def test_time_is_that_of_the_flops_where_the_compiler_has_no_estimate():
  """It writes 2^63 - 1 cycles for an operation that it cannot estimate."""
  slice_ = slices.parse("v5e:2x2")
  chip = slice_.chip
  known = check._seconds(3 * chip.clock, 2 * chip.flops, 4 * chip.flops, slice_)
  unknown = check._seconds(2.0**63 - 1, 2 * chip.flops, 4 * chip.flops, slice_)
  assert known == (5.0, "the compiler")
  assert unknown == (4.0, "the compiler, time of FLOPs")
