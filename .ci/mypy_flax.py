"""A mypy plugin: `flax.struct.dataclass` gives a class its method `replace`."""

from collections.abc import Callable

from mypy.nodes import ARG_STAR2, Argument, Var
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins.common import add_method_to_class
from mypy.plugins.dataclasses import dataclass_class_maker_callback
from mypy.types import AnyType, TypeOfAny
from mypy.typevars import fill_typevars


def _with_replace(context: ClassDefContext) -> bool:
  done = dataclass_class_maker_callback(context)
  changes = Var("changes", AnyType(TypeOfAny.explicit))
  add_method_to_class(
    context.api,
    context.cls,
    "replace",
    [Argument(changes, changes.type, None, ARG_STAR2)],
    fill_typevars(context.cls.info),
  )
  return done


class Flax(Plugin):
  """Knows flax's decorator."""

  def get_class_decorator_hook_2(
    self, fullname: str
  ) -> Callable[[ClassDefContext], bool] | None:
    """The hook of a class decorator by its full name."""
    return _with_replace if fullname == "flax.struct.dataclass" else None


def plugin(version: str) -> type[Plugin]:
  """Called by mypy."""
  del version
  return Flax
