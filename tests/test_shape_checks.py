from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError
from torch import Tensor

from ovss_core.kernels.norms import layer_norm
from tests.shape_checks import CHECK, PACKAGES, check_shapes

if TYPE_CHECKING:
    OnlyForMypy = str


@check_shapes
def product(
    left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]
) -> Float[Tensor, "rows columns"]:
    return left @ right


@check_shapes
def turned(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    return matrix.T


@check_shapes
def first_rows(matrix: Float[Tensor, "rows columns"], count: int) -> Float[Tensor, "rows columns"]:
    return matrix[:count]


@check_shapes
def rows_of(matrix: Float[Tensor, "rows columns"]) -> Iterator[Float[Tensor, " columns"]]:
    yield from matrix


@check_shapes
def nested(first: Float[Tensor, " n"], second: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    return product(second[:, None], second[None])[0] + first[0] * second


@check_shapes
def repeated(count: int, name: "OnlyForMypy") -> list[str]:
    return [name] * count


@check_shapes
@dataclass
class Pair:
    maps: Float[Tensor, "maps height width"]
    classes: Int[Tensor, " maps"]
    notes: list[str] = field(default_factory=list)


def test_arguments_and_results_have_the_shapes_and_types_that_are_promised() -> None:
    left, right = torch.rand(2, 3), torch.rand(3, 4)
    assert product(left, right=right).shape == (2, 4)
    for wrong in ((left, right.T), (left, right[0]), (left.int(), right), (left.numpy(), right)):
        with pytest.raises(TypeCheckError, match="product"):
            product(*wrong)
    with pytest.raises(TypeCheckError, match="return"):
        turned(left)
    assert turned(torch.rand(3, 3)).shape == (3, 3)


def test_a_name_means_one_number_within_a_call_and_another_in_the_next_or_in_one_within() -> None:
    assert nested(torch.rand(5), torch.rand(2)).shape == (2,)
    assert product(torch.rand(4, 4), torch.rand(4, 1)).shape == (4, 1)
    with pytest.raises(TypeCheckError):
        product(torch.rand(4, 4), torch.rand(3, 1))
    assert product(torch.rand(1, 2), torch.rand(2, 7)).shape == (1, 7)


def test_what_passed_once_is_looked_at_again_where_the_same_call_returns_something_else() -> None:
    matrix = torch.rand(3, 2)
    for _ in range(2):
        assert first_rows(matrix, 3).shape == (3, 2)
        with pytest.raises(TypeCheckError):
            first_rows(matrix, 2)
        with pytest.raises(TypeCheckError):
            first_rows(matrix.double().int(), 3)


def test_a_generator_is_checked_when_it_is_called() -> None:
    assert len(list(rows_of(torch.rand(3, 2)))) == 3
    with pytest.raises(TypeCheckError):
        rows_of(torch.rand(3))


def test_what_a_dataclass_is_made_of_is_checked() -> None:
    assert Pair(torch.zeros(2, 3, 3), torch.tensor([4, 5])).notes == []
    with pytest.raises(TypeCheckError):
        Pair(torch.zeros(2, 3, 3), torch.tensor([4, 5, 6]))


def test_other_types_are_checked_as_well_and_what_only_mypy_can_read_is_anything() -> None:
    assert repeated(2, "a") == ["a", "a"]
    with pytest.raises(TypeCheckError):
        repeated("2", "a")  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        repeated(2, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_is_checked(name: str) -> None:
    assert getattr(import_module(name), CHECK) is check_shapes


def test_the_projects_own_functions_are_checked() -> None:
    norm = torch.nn.LayerNorm(3)
    assert layer_norm(torch.zeros(1, 2, 3), norm).shape == (1, 2, 3)
    with pytest.raises(TypeCheckError, match="layer_norm"):
        layer_norm(torch.zeros(2, 3), norm)
