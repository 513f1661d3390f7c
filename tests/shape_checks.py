"""The shapes that annotations promise, checked at every call of the packages below.

It is jaxtyping's import hook with less to do for each call: jaxtyping's own checks the arguments once alone and once more
beside the result, and binds them to names that only `{braces}` in a shape would read. That took half of the engine's tests.
And what a function was called with and returned is not looked at again where types, shapes and dtypes are those of a call that passed.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints, overload

import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped
from torch import Tensor

PACKAGES = (
    "ovss_core.clip",
    "ovss_core.proxies",
    "ovss_core.feature_purification",
    "ovss_core.dense_heads",
    "ovss_core.class_purification",
    "ovss_core.refiners",
    "ovss_core.vocabulary_filter",
    "ovss_core.engine",
    "ovss_core.kernels.attention",
    "ovss_core.kernels.averages",
    "ovss_core.kernels.class_sums",
    "ovss_core.kernels.norms",
    "ovss_core.kernels.products",
    "ovss_core.images.pixels",
    "ovss_core.images.stitch",
    "ovss_core.images.windows",
)
"""Where tensors flow; not configuration, vocabulary and preprocessing, whose own errors are tested."""

CHECK = "__check_shapes__"
_MOST_ENTRIES = 32

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_CONF = BeartypeConf(violation_type=TypeCheckError)
_check_types = beartype(conf=_CONF)
_names_of_one_call = jaxtyped("context")


@overload
def check_shapes(checked: C) -> C: ...
@overload
def check_shapes(checked: Callable[P, R]) -> Callable[P, R]: ...
def check_shapes(checked: Any) -> Any:
    """Check what a function is called with and returns, or what a dataclass is made of; other classes stay as they are.

    A name of a dimension means one number within a call, over all arguments and the result.
    """
    if inspect.isclass(checked):
        if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
            checked.__init__ = check_shapes(checked.__init__)  # type: ignore[method-assign]
        return checked
    if inspect.isgeneratorfunction(checked):  # beartype alone would look at the arguments at the first `next`
        return jaxtyped(checked, typechecker=_check_types)
    checked.__annotations__ = {
        name: _resolved(annotation, checked.__globals__)
        for name, annotation in checked.__annotations__.items()
    }
    checking = _check_types(checked)
    if not any(map(_has_shape, checked.__annotations__.values())):
        return checking

    passed: dict[Any, set[Any]] = {}
    """What came out of calls that passed, by what went in."""

    @wraps(checked)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        given = _kind(args), _kind(kwargs)
        known = passed.get(given)
        if known is None:
            with _names_of_one_call:
                result = checking(*args, **kwargs)
            passed[given] = {_kind(result)}
            return result
        result = checked(*args, **kwargs)
        if (returned := _kind(result)) not in known:
            with _names_of_one_call:
                _check_again(checked, args, kwargs, result)
            known.add(returned)
        return result

    return call


def _kind(value: Any) -> Any:
    """Return all that a check of a value can depend on."""
    if isinstance(value, Tensor | np.ndarray):
        return type(value), value.shape, value.dtype
    if isinstance(value, list | tuple):  # of many entries beartype itself looks at one
        return type(value), len(value), *map(_kind, value[:_MOST_ENTRIES])
    if isinstance(value, dict):
        return dict, *((key, _kind(entry)) for key, entry in value.items())
    # a word may have to be one of several
    return (value,) if isinstance(value, str | bool) else type(value)


def _check_again(
    checked: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Check another result of a call whose arguments have passed: with them, for they name the dimensions."""
    __tracebackhide__ = True
    hints = checked.__annotations__
    bound = inspect.signature(checked).bind(*args, **kwargs).arguments
    for name, value in [*bound.items(), ("return", result)]:
        if name in hints and _has_shape(hints[name]):
            die_if_unbearable(value, hints[name], conf=_CONF)


def _has_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(
        map(_has_shape, get_args(hint))
    )


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """Return what an annotation says at this moment, anything where it says it in words that only mypy can read."""
    if isinstance(annotation, type) or annotation is None:
        return annotation
    try:
        [hint] = get_type_hints(
            SimpleNamespace(__annotations__={"it": annotation}), names, include_extras=True
        ).values()
    except NameError:
        return Any
    return hint


class _Decorated(ast.NodeTransformer):
    """Put the check below every function's decorators and above every class's, as jaxtyping's hook does."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list.append(_check_at(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, _check_at(node))
        return node


def _check_at(node: ast.AST) -> ast.Name:
    return ast.copy_location(ast.Name(CHECK, ast.Load()), node)


class _CheckedLoader(SourceFileLoader):
    """Compile a module with the checks, past the cache of bytecode, where it lies without."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _Decorated().visit(ast.parse(self.get_data(path), path))
        code: CodeType = compile(tree, path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, CHECK, check_shapes)
        super().exec_module(module)


class _CheckedPackages(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PACKAGES) or not any(
            fullname == name or fullname.startswith(f"{name}.") for name in PACKAGES
        ):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


def check_packages() -> None:
    """Check the packages from now on; none of them may be imported yet."""
    early = [name for name in PACKAGES if name in sys.modules]
    if early:
        raise RuntimeError(f"imported before its shapes could be checked: {', '.join(early)}")
    sys.meta_path.insert(0, _CheckedPackages())
