"""Checks an experiment on a slice that is not there: memory, time, communication.

Where there is a compiler, the figures of a program are the compiler's; the time is the
sum of its estimates, without waiting for collectives: a lower bound; that of all FLOPs
at the chip's peak where it has no estimate of an operation. It states nothing of Pallas
kernels: their FLOPs are counted as traced, at the chip's peak. Without one,
arguments are exact, temporaries are an upper bound by arithmetic, and the time is that
of the FLOPs at the chip's peak.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from xpo_jax.config.experiment import Experiment, Rollouts, Scratch
from xpo_jax.config.mesh_shape import MeshShape
from xpo_jax.data.pack import Batch
from xpo_jax.models import lora, transformer
from xpo_jax.models.config import Config, Remat
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules
from xpo_jax.topology import flops, hlo, programs, slices
from xpo_jax.topology.programs import Program
from xpo_jax.topology.slices import GIB, Slice
from xpo_jax.train import state, validate

_NO_ESTIMATE = 2.0**62  # cycles: the compiler writes the largest integer instead


class Figures(NamedTuple):
  """What one chip of a slice does in one run of a program.

  Attributes:
    program: which.
    arguments: bytes.
    temporaries: bytes; None: it does not compile, for lack of memory.
    peak: bytes of all that is there at once, other arrays of the run included.
    flops: its part of all chips', as traced or as compiled; those of kernels as traced.
    least: as `Program.least`, its part.
    seconds: see the module.
    collectives: kind -> (runs, bytes); {}: not read.
    source: where the figures are from.
  """

  program: Program
  arguments: float
  temporaries: float | None
  peak: float
  flops: float
  least: float
  seconds: float
  collectives: Mapping[str, tuple[float, float]]
  source: str


class Report(NamedTuple):
  """Figures of a run on a slice.

  Attributes:
    slice: of which chips.
    mesh: sizes of its axes.
    remat: what the backward pass computes again, see `Config.remat`.
    figures: of each program.
    advice: what would make it fit; () where it does.
  """

  slice: Slice
  mesh: Mapping[str, int]
  remat: Remat
  figures: tuple[Figures, ...]
  advice: tuple[str, ...]

  @property
  def fits(self) -> bool:
    """Whether every program has room."""
    return all(
      one.temporaries is not None and one.peak <= self.slice.chip.hbm
      for one in self.figures
    )


def check(experiment: Experiment, name: str) -> Report:
  """Compiles, or computes, the programs of an experiment for a slice.

  Args:
    experiment: the run.
    name: of the slice, see `slices.parse`.

  Raises:
    ValueError: no such slice; a mesh that it cannot hold or that does not divide sizes;
      what `programs.make` refuses.
  """
  slice_ = slices.parse(name)
  mesh = _mesh(experiment.mesh, slice_, "Experiment.mesh", "--mesh")
  data, sampling_mesh = experiment.data, None
  if isinstance(data, Rollouts) and data.sampling.mesh is not None:
    field = ("Sampling.mesh", "--data.sampling.mesh")
    sampling_mesh = _mesh(data.sampling.mesh, slice_, *field)
  made = programs.make(experiment, mesh, sampling_mesh)
  read = _compiled if slice_.compiled else _computed
  figures = tuple(read(experiment, one, slice_) for one in made)
  remat = programs.config_of(experiment.start).remat
  report = Report(slice_, dict(mesh.shape), remat, figures, ())
  return report if report.fits else report._replace(advice=_advice(experiment, report))


def _mesh(shape: MeshShape, slice_: Slice, field: str, flag: str) -> Any:
  """The mesh of this shape on a slice, its devices those of the compiler."""
  sizes = validate.mesh_sizes(shape, slice_.count)
  if math.prod(sizes) != slice_.count:
    named = dict(zip(meshes.AXES, sizes, strict=True))
    raise ValueError(
      f"{field} is {named} for the {slice_.count} chips of {slice_.name}; leave one "
      f"axis None ({flag}.fsdp None), or give sizes whose product is that"
    )
  if slice_.compiled:
    return meshes.make_mesh(*sizes, devices=slices.devices(slice_))
  types = (jax.sharding.AxisType.Auto,) * len(meshes.AXES)
  return jax.sharding.AbstractMesh(sizes, meshes.AXES, types)


def _compiled(experiment: Experiment, program: Program, slice_: Slice) -> Figures:
  """Figures by the compiler."""
  del experiment
  with meshes.entered(program.mesh):
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
  total = flops.traced(traced.jaxpr, program.loops) / slice_.count
  kernels = flops.in_kernels(traced.jaxpr, program.loops) / slice_.count
  arguments = programs.device_bytes(program.arguments)
  least = program.least / slice_.count
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    peak = _used(str(error)) + program.beside
    ideal = total / slice_.chip.flops
    return Figures(
      program, arguments, None, peak, total, least, ideal, {}, "does not compile"
    )
  memory = compiled.memory_analysis()
  peak = memory.peak_memory_in_bytes + program.beside
  sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, peak)
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # libtpu does not print every v5p and v6e module
    ideal, source = total / slice_.chip.flops, "memory by the compiler, time of FLOPs"
    return Figures(program, *sizes, total, least, ideal, {}, source)
  cost = hlo.read(text, program.loops)
  products = cost.flops + kernels
  seconds, source = _seconds(cost.cycles, kernels, products, slice_)
  return Figures(program, *sizes, products, least, seconds, cost.collectives, source)


def _seconds(
  cycles: float, kernels: float, products: float, slice_: Slice
) -> tuple[float, str]:
  """The time of a program by the compiler's cycles and the FLOPs of kernels, and where
  it is from; that of all its FLOPs where an operation has no estimate."""
  if cycles >= _NO_ESTIMATE:
    return products / slice_.chip.flops, "the compiler, time of FLOPs"
  return cycles / slice_.chip.clock + kernels / slice_.chip.flops, "the compiler"


def _used(message: str) -> float:
  """Bytes that a program would need, from the compiler's refusal."""
  found = re.search(r"Used ([0-9.]+)([KMGT]) of", message)
  if found is None:
    return math.inf
  return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2]))


def _computed(experiment: Experiment, program: Program, slice_: Slice) -> Figures:
  """Figures by arithmetic."""
  with meshes.entered(program.mesh):
    traced = program.function.trace(*program.arguments)
  total = flops.traced(traced.jaxpr, program.loops) / slice_.count
  arguments = programs.device_bytes(program.arguments)
  temporaries = _temporaries(experiment, program)
  return Figures(
    program,
    arguments,
    temporaries,
    arguments + temporaries + program.beside,
    total,
    program.least / slice_.count,
    total / slice_.chip.flops,
    {},
    "arithmetic",
  )


def _temporaries(experiment: Experiment, program: Program) -> float:
  """Bytes that a program needs at most beside its arguments, by arithmetic: kept
  activations, one layer's own, whole tables, and the gradient."""
  config = programs.config_of(experiment.start)
  item = np.dtype(jax.numpy.dtype(config.compute_dtype)).itemsize
  mesh, tensor = program.mesh, program.mesh.shape["tensor"]
  tree = transformer.weights(config)
  blocks = sum(math.prod(w.shape) for w in jax.tree.leaves(tree["blocks"]))
  table = config.vocab * config.width
  layer = blocks / config.layers / tensor
  wide = _layer_width(config, tensor)
  if program.name == "sampler":
    B, shards = program.arguments[1].shape[0], meshes.row_shards(mesh)
    cache = 2 * config.layers * config.kv_heads * config.head_dim * item / shards
    if rules.kv_head_axis(mesh, config.kv_heads) is not None:
      cache /= tensor
    # A token of the cache for each that is read or written, gathered tables in the
    # parameters' dtype and the compute dtype, and a layer gathered along the width.
    tables = 2 * table * (4 + item) / tensor
    return program.tokens * cache + tables + 2 * layer * item + B / shards * wide * item
  tokens = _tokens(program.arguments[2 if program.name == "step" else 1], mesh.shape)
  total = tokens * wide * item + 2 * layer * item + 2 * table * item
  if program.name == "step":
    trained = programs.device_bytes(program.arguments[0].params)
    kept = kept_width(config, config.remat, experiment.adapter, tensor)
    total += config.layers * tokens * kept * item + trained + table * 4 / tensor
  return total


def _tokens(batch: Batch, shape: Mapping[str, int]) -> float:
  """Tokens of a microbatch that a chip has."""
  rows, length = batch.tokens_MRL.shape[1:]
  return rows * length / math.prod(shape[axis] for axis in meshes.ROWS)


def kept_width(
  config: Config, remat: Remat, adapter: Adapter | None = None, tensor: int = 1
) -> float:
  """Activations of a token that a layer keeps on a chip for the backward pass.

  Of "none" an estimate of what the compiler keeps, attention's weights left out; of
  the others exact.

  Args:
    config: of the decoder.
    remat: see `Config.remat`; what "offload" keeps on the host is not counted.
    adapter: its factors' outputs are matrix products of their own.
    tensor: shards of heads and MLP.

  Returns:
    A number of elements of the compute dtype.
  """
  if remat == "none":
    return _layer_width(config, tensor)
  if remat != "dots":
    return config.width
  # Outputs that a recomputed block reads: not those that are only added up.
  added = config.width if config.post_norm else 0
  outputs = {
    "query": config.heads * config.head_dim / tensor,
    "key": config.kv_heads * config.head_dim / tensor,
    "value": config.kv_heads * config.head_dim / tensor,
    "output": added if config.parallel_residual else config.width,
  }
  if config.experts is None:
    outputs |= {"up": config.mlp_width / tensor, "down": added}
    outputs |= {"gate": config.mlp_width / tensor} if config.gated else {}
  else:
    outputs["router"] = config.experts.count
  total = config.width + sum(outputs.values())
  if adapter is not None:
    adapted = [name for name in lora.targets(config, adapter) if name in outputs]
    total += sum(outputs[name] + adapter.rank for name in adapted)
  return total


def _layer_width(config: Config, tensor: int) -> float:
  """Elements of a token that one layer computes, about."""
  wide = 4.0 * config.width
  wide += (2 * config.heads + 2 * config.kv_heads) * config.head_dim / tensor
  return wide + 3 * config.mlp_width / tensor


def _advice(experiment: Experiment, report: Report) -> tuple[str, ...]:
  """What would save memory, with the bytes of a chip that are known."""
  advice = []
  shape, start = report.mesh, experiment.start
  step = next(one for one in report.figures if one.program.name == "step")
  params = programs.device_bytes(step.program.arguments[0].params)
  if shape["data"] > 1:
    saved = step.arguments * (1 - 1 / shape["data"])
    advice.append(f"--mesh.data 1 --mesh.fsdp None saves {saved / GIB:.2f} GiB")
  if experiment.precision.moments == "float32":
    moments = programs.device_bytes(step.program.arguments[0].opt_state) / 2
    if moments > params / 10:
      advice.append(f"--precision.moments bfloat16 saves {moments / GIB:.2f} GiB")
  if experiment.precision.params == "float32" and experiment.adapter is None:
    advice.append(f"--precision.params bfloat16 saves {params / 2 / GIB:.2f} GiB")
  if experiment.precision.base != "nf4" and experiment.adapter is not None:
    base = programs.device_bytes(step.program.arguments[1][state.BASE])
    if experiment.precision.base == "float32":
      advice.append(f"--precision.base bfloat16 saves {base / 2 / GIB:.2f} GiB")
    advice.append("--precision.base nf4 keeps the base's linear layers in 4 bits")
  config = programs.config_of(start)
  batch = step.program.arguments[2]
  item = np.dtype(jax.numpy.dtype(config.compute_dtype)).itemsize
  elements = config.layers * _tokens(batch, shape) * item
  kept = {
    remat: elements * kept_width(config, remat, experiment.adapter, shape["tensor"])
    for remat in get_args(Remat)
  }
  field = "start.model.remat" if isinstance(start, Scratch) else "start.remat"
  for remat, size in kept.items():
    if (saved := kept[config.remat] - size) > 0:
      advice.append(f"--{field} {remat} saves {saved / GIB:.2f} GiB")
  if config.compute_dtype == "float32":
    advice.append("compute_dtype bfloat16 of the start halves activations")
  rows = batch.tokens_MRL.shape[1] // (shape["data"] * shape["fsdp"])
  if rows > 1:
    advice.append(f"more microbatches: a chip has {rows} rows of a microbatch")
  else:
    advice.append("a shorter row_length and lower limits, or more --mesh.tensor")
  advice.append("a larger slice")
  return tuple(advice)


def lines(report: Report) -> list[str]:
  """Formats a report for display."""
  chip = report.slice.chip
  out = [
    f"{report.slice.name}: {report.slice.count} chips, {_axes(report.mesh)}, remat "
    f"{report.remat}; per chip:"
  ]
  hours = 0.0
  for one in report.figures:
    on = "" if one.program.mesh.shape == report.mesh else _axes(one.program.mesh.shape)
    out += [f"  {line}" for line in _program_lines(one, report.slice, on)]
    hours += one.seconds * (one.program.runs or 0) / 3600
  state = next(
    x.program.arguments[0] for x in report.figures if x.program.name == "step"
  )
  count = sum(x.size for x in jax.tree.leaves(state.params))
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
  held += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
  out.append(
    f"  state: {held / count:.2f} bytes a trained parameter, {count:,} of them"
  )
  if hours:
    out.append(
      f"  the run, at least: {hours:,.1f} hours, "
      f"{hours * report.slice.count:,.0f} chip-hours"
    )
  peak = max(one.peak for one in report.figures)
  if report.fits:
    out.append(f"  fits: {peak / GIB:.2f} of {chip.hbm / GIB:.2f} GiB")
  else:
    out.append(f"  does not fit: {peak / GIB:.2f} of {chip.hbm / GIB:.2f} GiB; it may")
    out += [f"    {line}" for line in report.advice]
  return out


def _axes(shape: Mapping[str, int]) -> str:
  return " x ".join(f"{name} {size}" for name, size in shape.items())


def _program_lines(one: Figures, slice_: Slice, on: str) -> list[str]:
  """Lines of a program; `on` is its mesh where that is not the run's."""
  rest = "do not fit"
  if one.temporaries is not None:
    rest = f"{one.temporaries / GIB:.3f} GiB"
  seconds = max(one.seconds, 1e-12)
  mfu = one.least / slice_.chip.flops / seconds
  out = [
    f"{one.program.name}{on and ' on '}{on} ({one.source})",
    f"  arguments {one.arguments / GIB:.3f} GiB, temporaries {rest}, "
    f"peak {one.peak / GIB:.2f} of {slice_.chip.hbm / GIB:.2f} GiB",
    f"  {one.flops / 1e12:,.2f} TFLOP, {one.flops / one.least:.2f} of the least; "
    f"at least {one.seconds:.3f} s, MFU at most {mfu:.0%}",
  ]
  for kind, (runs, size) in sorted(one.collectives.items()):
    out.append(f"  {kind}: {runs:,.0f} with {size / GIB:.3f} GiB")
  return out
