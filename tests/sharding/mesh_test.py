"""Meshes: sizes, axis types, refused arguments."""

import itertools
import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from xpo_jax.sharding import mesh as meshes


def test_make_mesh_has_auto_axes_in_order():
  mesh = meshes.make_mesh(2, 1, 4)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert mesh.size == jax.device_count() == 8


def test_make_mesh_of_chosen_devices_takes_those():
  devices = jax.devices()[2:4]
  mesh = meshes.make_mesh(fsdp=2, devices=devices)
  assert list(mesh.devices.flat) == devices


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 2, 1), (0, 8, 1), (-2, -4, 1)])
def test_make_mesh_that_does_not_divide_devices_lists_what_does(sizes):
  with pytest.raises(ValueError, match="8 devices") as error:
    meshes.make_mesh(*sizes)
  assert f"'data': {sizes[0]}" in str(error.value)
  assert "(1, 1, 8)" in str(error.value) and "(2, 2, 2)" in str(error.value)


def test_check_batch_refuses_uneven_rows_by_name():
  mesh = meshes.make_mesh(2, 2, 2)
  meshes.check_batch(mesh, 4)
  meshes.check_batch(mesh, 24, microbatches=3)
  with pytest.raises(ValueError, match=r"rows=6 .*'data': 2, 'fsdp': 2.*multiple of 4"):
    meshes.check_batch(mesh, 6)
  with pytest.raises(ValueError, match=r"microbatches=3.*multiple of 12"):
    meshes.check_batch(mesh, 16, microbatches=3)
  with pytest.raises(ValueError, match="rows=0"):
    meshes.check_batch(mesh, 0)


def test_current_mesh_is_one_of_ours_that_was_entered():
  ours = meshes.make_mesh(2, 1, 4)
  other = jax.make_mesh((8,), ("runs",), axis_types=(AxisType.Auto,))
  seen = []

  def look(x):
    seen.append(meshes.current())
    return x

  jax.jit(look)(1.0)
  with meshes.entered(ours):
    jax.jit(look)(2)
  parts = jax.sharding.PartitionSpec("runs")
  jax.jit(jax.shard_map(look, mesh=other, in_specs=parts, out_specs=parts))(
    jax.numpy.arange(8)
  )
  rows = jax.sharding.PartitionSpec(meshes.ROWS)
  jax.jit(jax.shard_map(look, mesh=ours, in_specs=rows, out_specs=rows))(
    jax.numpy.arange(8.0)
  )
  assert seen == [None, ours.abstract_mesh, None, None]


def _grid(*sizes):
  return list(itertools.product(*map(range, sizes)))


@pytest.mark.parametrize(
  "places, lines",
  [
    (_grid(16, 16), (16, 16)),
    (_grid(4, 8, 8), (4, 8, 8)),
    ([(x if y % 2 else 3 - x, y) for y in range(4) for x in range(4)], (4, 4)),
    ([(4 * x, y) for x in range(4) for y in range(16)], (4, 16)),
    (_grid(16), (16,)),
    (_grid(2, 4), (8,)),  # few
    ([()] * 16, (16,)),  # no torus
    ([(0, 0), (1, 1), (2, 2)] * 4, (12,)),  # no line
  ],
  ids=str,
)
def test_lines_of_an_axis_are_those_of_the_torus(places, lines):
  assert meshes._lines(places) == lines


def test_lines_of_a_mesh_are_those_of_its_devices_and_slices():
  def chip(place):
    part, *coords = place
    return types.SimpleNamespace(slice_index=part, coords=coords)

  chips = list(map(chip, _grid(2, 4, 4, 2)))  # two slices; the last axis is "tensor"
  devices = np.array(chips).reshape(1, 32, 2)
  mesh = types.SimpleNamespace(devices=devices, axis_names=meshes.AXES)
  assert meshes.lines(mesh, "fsdp") == (8, 4)
  assert meshes.lines(mesh, "tensor") == (2,)


def test_mesh_without_a_torus_is_one_line():
  mesh = meshes.make_mesh(1, 4, 2)
  assert meshes.lines(mesh, "fsdp") == (4,)
  with meshes.entered(mesh):
    assert meshes.lines(meshes.current(), "fsdp") == (4,)
  assert meshes.lines(mesh.abstract_mesh, "fsdp") == (4,)


def test_axis_that_is_a_part_of_an_axis_of_the_torus(monkeypatch):
  """`jax.make_mesh` refuses it: 8 devices of 4 x 4 x 4."""

  def refuse(*args, **options):
    raise NotImplementedError("Failed to find assignment for logical_axis_index 2")

  expected = dict(meshes.make_mesh(2, 2, 2).shape)
  monkeypatch.setattr(jax, "make_mesh", refuse)
  split = meshes.make_mesh(2, 2, 2)
  assert dict(split.shape) == expected and set(split.axis_types) == {AxisType.Auto}
  assert set(split.devices.flat) == set(jax.devices())
