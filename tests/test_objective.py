"""The loss and the bound against arithmetic done by hand: matrices are logs of small integers."""

import math

import pytest
import torch
from torch import Tensor

from sami.errors import InputError
from sami.objective import column_accuracy, contrast_losses, information_bound, row_accuracy, row_figure, sami_loss

# Rows are constitutions, columns are responses, entries are probabilities up to a factor.
TWO = torch.tensor([[[3.0, 1.0], [2.0, 2.0]]]).log()
# columns: 3 of 3 + 2, 2 of 1 + 2     -> (log 5/3 + log 3/2) / 2 = log(5/2) / 2
# rows:    3 of 3 + 1, 2 of 2 + 2     -> (log 4/3 + log 2) / 2   = log(8/3) / 2
TWO_COLUMNS, TWO_ROWS = math.log(5 / 2) / 2, math.log(8 / 3) / 2

THREE = torch.tensor([[[2.0, 1.0, 1.0], [1.0, 4.0, 3.0], [3.0, 3.0, 2.0]]]).log()
# columns: 2 of 6, 4 of 8, 2 of 6     -> (log 3 + log 2 + log 3) / 3 = log(18) / 3
# rows:    2 of 4, 4 of 8, 2 of 8     -> (log 2 + log 2 + log 4) / 3 = log(16) / 3
THREE_COLUMNS, THREE_ROWS = math.log(18) / 3, math.log(16) / 3

BY_HAND = pytest.mark.parametrize(
    ("matrix", "columns", "rows"),
    [(TWO, TWO_COLUMNS, TWO_ROWS), (THREE, THREE_COLUMNS, THREE_ROWS)],
    ids=["2x2", "3x3"],
)


def random_matrices(c: int, scale: float = 3.0, contrasts: int = 5) -> Tensor:
    return scale * torch.randn(contrasts, c, c, generator=torch.Generator().manual_seed(c))


@BY_HAND
def test_loss_of_each_direction_is_the_one_by_hand(matrix, columns, rows):
    assert sami_loss(matrix, "columns").item() == pytest.approx(columns, abs=1e-6)
    assert sami_loss(matrix, "rows").item() == pytest.approx(rows, abs=1e-6)
    assert sami_loss(matrix, "both").item() == pytest.approx((columns + rows) / 2, abs=1e-6)
    assert sami_loss(matrix).item() == sami_loss(matrix, "both").item()


@BY_HAND
def test_bound_is_log_c_minus_the_column_loss(matrix, columns, rows):
    c = matrix.shape[1]
    assert information_bound(matrix).tolist() == pytest.approx([math.log(c) - columns], abs=1e-6)
    assert row_figure(matrix).tolist() == pytest.approx([math.log(c) - rows], abs=1e-6)


def test_swapping_the_roles_of_rows_and_columns_transposes_the_matrix():
    transposed = TWO.transpose(1, 2)
    assert sami_loss(transposed, "columns").item() == pytest.approx(TWO_ROWS, abs=1e-6)
    assert sami_loss(transposed, "rows").item() == pytest.approx(TWO_COLUMNS, abs=1e-6)


def test_loss_is_the_mean_over_contrasts_and_the_bound_is_not_reduced():
    batch = torch.cat([TWO, TWO.transpose(1, 2), torch.zeros(1, 2, 2)])
    expected = [TWO_COLUMNS, TWO_ROWS, math.log(2)]
    assert contrast_losses(batch, "columns").tolist() == pytest.approx(expected, abs=1e-6)
    assert sami_loss(batch, "columns").item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert information_bound(batch).shape == (3,)


@pytest.mark.parametrize("c", [2, 3, 4, 16])
def test_a_uniform_matrix_has_bound_zero_and_loss_log_c(c):
    matrix = torch.full((1, c, c), -1.7)
    for direction in ("columns", "rows", "both"):
        assert sami_loss(matrix, direction).item() == pytest.approx(math.log(c), abs=1e-6)
    assert information_bound(matrix).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("c", [2, 3, 4, 16])
def test_a_perfect_matrix_has_a_bound_of_log_c(c):
    matrix = 50.0 * torch.eye(c)[None] - 60.0
    assert information_bound(matrix).item() == pytest.approx(math.log(c), abs=1e-6)
    assert sami_loss(matrix).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("c", [2, 3, 4, 16])
def test_the_bound_never_exceeds_log_c(c, scale):
    matrix = random_matrices(c, scale, contrasts=2000)
    matrix[1000:] += 10 * scale * torch.eye(c)  # half of them close to perfect
    assert matrix.dtype == torch.float32
    assert information_bound(matrix).max() <= torch.tensor(math.log(c))  # log C in fp32
    assert contrast_losses(matrix, "columns").min() >= 0
    assert contrast_losses(matrix, "rows").min() >= 0


def test_a_matrix_that_prefers_the_wrong_constitution_has_a_negative_bound():
    swapped = torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]).log()  # 1 of 4 in both columns
    assert information_bound(swapped).item() == pytest.approx(math.log(2) - math.log(4), abs=1e-6)


def test_columns_ignore_how_likely_a_response_is_at_all():
    """A constant added to a column (a response) cancels in the columns, and not in the rows."""
    matrix = random_matrices(3)
    shifted = matrix + torch.tensor([0.0, 2.0, -1.0])[None, None, :]
    torch.testing.assert_close(contrast_losses(shifted, "columns"), contrast_losses(matrix, "columns"))
    assert (contrast_losses(shifted, "rows") - contrast_losses(matrix, "rows")).abs().max() > 0.5
    assert torch.equal(column_accuracy(shifted), column_accuracy(matrix))


def test_rows_ignore_how_likely_a_constitution_makes_everything():
    """A constant added to a row (a constitution) cancels in the rows, and not in the columns."""
    matrix = random_matrices(3)
    shifted = matrix + torch.tensor([0.0, 2.0, -1.0])[None, :, None]
    torch.testing.assert_close(contrast_losses(shifted, "rows"), contrast_losses(matrix, "rows"))
    assert (contrast_losses(shifted, "columns") - contrast_losses(matrix, "columns")).abs().max() > 0.5
    assert torch.equal(row_accuracy(shifted), row_accuracy(matrix))


def test_the_order_of_constitutions_does_not_matter():
    matrix, order = random_matrices(4), torch.tensor([2, 0, 3, 1])
    permuted = matrix[:, order][:, :, order]
    for direction in ("columns", "rows", "both"):
        torch.testing.assert_close(contrast_losses(permuted, direction), contrast_losses(matrix, direction))


def test_both_is_the_mean_of_rows_and_columns():
    matrix = random_matrices(4)
    mean = (contrast_losses(matrix, "rows") + contrast_losses(matrix, "columns")) / 2
    assert torch.equal(contrast_losses(matrix, "both"), mean)


def test_accuracies_count_rows_and_columns_won_by_the_diagonal():
    # Column maxima: 9 (own), 8 (row 0), 7 (own) -> 2/3. Row maxima: 9 (own), 6 (column 0), 7 (own) -> 2/3.
    matrix = torch.tensor([[[9.0, 8.0, 1.0], [6.0, 5.0, 2.0], [3.0, 4.0, 7.0]]])
    assert column_accuracy(matrix).tolist() == pytest.approx([2 / 3])
    assert row_accuracy(matrix).tolist() == pytest.approx([2 / 3])
    # Column maxima: 9 (own), 8 (row 0) -> 1/2. Row maxima: 9 (own), 5 (own) -> 1.
    matrix = torch.tensor([[[9.0, 8.0], [1.0, 5.0]]])
    assert column_accuracy(matrix).tolist() == [0.5]
    assert row_accuracy(matrix).tolist() == [1.0]


def test_a_tie_is_shared_among_those_that_tie():
    # Column 0: own 5 ties with one other -> 1/2. Column 1: own 1 loses to a tie of two -> 0. Column 2: 1.
    matrix = torch.tensor([[[5.0, 4.0, 0.0], [5.0, 1.0, 0.0], [2.0, 4.0, 3.0]]])
    assert column_accuracy(matrix).tolist() == pytest.approx([(1 / 2 + 0 + 1) / 3])
    # Row 0: own 5 wins -> 1. Row 1: own 1 loses -> 0. Row 2: own 3 loses to 4 -> 0.
    assert row_accuracy(matrix).tolist() == pytest.approx([1 / 3])
    for c in (2, 3, 4):  # all tie: chance
        assert column_accuracy(torch.zeros(1, c, c)).item() == pytest.approx(1 / c)
        assert row_accuracy(torch.zeros(1, c, c)).item() == pytest.approx(1 / c)


@pytest.mark.parametrize(
    "figure", [sami_loss, contrast_losses, information_bound, row_figure, column_accuracy, row_accuracy]
)
@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 3, 2), (1, 1, 1), (2, 2), (1, 1, 2, 2)], ids=str)
def test_shapes_that_are_no_log_prob_matrix_are_refused(figure, shape):
    with pytest.raises(InputError, match=r"shape \(.*at least 2 constitutions"):
        figure(torch.zeros(shape))


@pytest.mark.parametrize("figure", [information_bound, row_figure])
@pytest.mark.parametrize("shape", [(), (2,), (1, 0, 0)], ids=str)
def test_shapes_without_a_second_dimension_are_refused(figure, shape):
    with pytest.raises(InputError):
        figure(torch.zeros(shape))


def test_an_unknown_direction_is_refused():
    with pytest.raises(InputError, match=r"'diagonal'.*both, columns or rows"):
        sami_loss(TWO, "diagonal")  # type: ignore[arg-type]


@pytest.mark.parametrize("c", [2, 4])
def test_gradients_flow_through_every_cell(c):
    """The gradient of one cross-entropy is softmax minus one-hot, over C for the mean."""
    matrix = random_matrices(c, scale=1.0, contrasts=1).double().requires_grad_()
    one_hot = torch.eye(c)[None]
    expected = {
        "columns": (matrix.softmax(1) - one_hot).detach() / c,
        "rows": (matrix.softmax(2) - one_hot).detach() / c,
    }
    expected["both"] = (expected["columns"] + expected["rows"]) / 2
    for direction, by_hand in expected.items():
        (gradient,) = torch.autograd.grad(sami_loss(matrix, direction), matrix)
        torch.testing.assert_close(gradient, by_hand)
        assert (gradient != 0).all()


def test_gradients_stay_finite_for_extreme_matrices():
    matrix = torch.tensor([[[0.0, -1e4], [-1e4, 0.0]], [[-1e4, 0.0], [0.0, -1e4]]], requires_grad=True)
    sami_loss(matrix).backward()
    assert torch.isfinite(matrix.grad).all()
