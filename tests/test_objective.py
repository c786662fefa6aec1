"""The loss and the bound against arithmetic done by hand: matrices are logs of small integers."""

import math

import pytest
import torch
from torch import Tensor

from sami.errors import InputError
from sami.objective import (
    ESTIMATORS,
    column_accuracy,
    contrast_losses,
    information_bound,
    row_accuracy,
    row_figure,
    sami_loss,
)

# Rows are constitutions, columns are responses, entries are probabilities up to a factor.
TWO = torch.tensor([[[3.0, 1.0], [2.0, 2.0]]]).log()
# columns: 3 of 3 + 2, 2 of 1 + 2     -> (log 5/3 + log 3/2) / 2 = log(5/2) / 2
# rows:    3 of 3 + 1, 2 of 2 + 2     -> (log 4/3 + log 2) / 2   = log(8/3) / 2
TWO_COLUMNS, TWO_ROWS = math.log(5 / 2) / 2, math.log(8 / 3) / 2

THREE = torch.tensor([[[2.0, 1.0, 1.0], [1.0, 4.0, 3.0], [3.0, 3.0, 2.0]]]).log()
# columns: 2 of 6, 4 of 8, 2 of 6     -> (log 3 + log 2 + log 3) / 3 = log(18) / 3
# rows:    2 of 4, 4 of 8, 2 of 8     -> (log 2 + log 2 + log 4) / 3 = log(16) / 3
THREE_COLUMNS, THREE_ROWS = math.log(18) / 3, math.log(16) / 3


def random_matrices(c: int, scale: float = 3.0, contrasts: int = 5) -> Tensor:
    return scale * torch.randn(contrasts, c, c, generator=torch.Generator().manual_seed(c))


@pytest.mark.parametrize(
    ("matrix", "columns", "rows"),
    [(TWO, TWO_COLUMNS, TWO_ROWS), (THREE, THREE_COLUMNS, THREE_ROWS), (TWO.mT, TWO_ROWS, TWO_COLUMNS)],
    ids=["2x2", "3x3", "transposed"],
)
def test_losses_and_bounds_of_each_direction_are_those_by_hand(matrix, columns, rows):
    assert sami_loss(matrix, "columns").item() == pytest.approx(columns, abs=1e-6)
    assert sami_loss(matrix, "rows").item() == pytest.approx(rows, abs=1e-6)
    assert sami_loss(matrix).item() == pytest.approx((columns + rows) / 2, abs=1e-6)
    assert sami_loss(matrix, "both", estimator="infonce").item() == sami_loss(matrix).item()
    assert information_bound(matrix).tolist() == pytest.approx([math.log(matrix.shape[1]) - columns], abs=1e-6)
    assert row_figure(matrix).tolist() == pytest.approx([math.log(matrix.shape[1]) - rows], abs=1e-6)


def test_the_loss_is_the_mean_over_contrasts_and_the_bound_is_not_reduced():
    batch = torch.cat([TWO, TWO.mT, torch.zeros(1, 2, 2)])
    expected = [TWO_COLUMNS, TWO_ROWS, math.log(2)]
    assert contrast_losses(batch, "columns").tolist() == pytest.approx(expected, abs=1e-6)
    assert sami_loss(batch, "columns").item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert information_bound(batch).shape == (3,)


@pytest.mark.parametrize("c", [2, 3, 16])
def test_the_bound_is_0_for_a_uniform_matrix_and_log_c_for_a_perfect_one(c):
    uniform, perfect = torch.full((1, c, c), -1.7), 50.0 * torch.eye(c)[None] - 60.0
    assert information_bound(uniform).item() == pytest.approx(0.0, abs=1e-6)
    assert information_bound(perfect).item() == pytest.approx(math.log(c), abs=1e-6)
    for direction in ("columns", "rows", "both"):
        assert sami_loss(uniform, direction).item() == pytest.approx(math.log(c), abs=1e-6)
        assert sami_loss(perfect, direction).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("c", [2, 3, 16])
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


@pytest.mark.parametrize(
    ("direction", "other", "accuracy", "shape"),
    [("columns", "rows", column_accuracy, (1, 1, 3)), ("rows", "columns", row_accuracy, (1, 3, 1))],
)
def test_a_direction_ignores_constants_of_its_own_and_not_of_the_other(direction, other, accuracy, shape):
    """How likely a response is at all cancels in the columns; how likely a constitution makes everything, in rows."""
    matrix = random_matrices(3)
    shifted = matrix + torch.tensor([0.0, 2.0, -1.0]).view(shape)
    torch.testing.assert_close(contrast_losses(shifted, direction), contrast_losses(matrix, direction))
    assert (contrast_losses(shifted, other) - contrast_losses(matrix, other)).abs().max() > 0.5
    assert torch.equal(accuracy(shifted), accuracy(matrix))


def test_the_order_of_constitutions_does_not_matter():
    matrix, order = random_matrices(4), torch.tensor([2, 0, 3, 1])
    permuted = matrix[:, order][:, :, order]
    for direction in ("columns", "rows", "both"):
        torch.testing.assert_close(contrast_losses(permuted, direction), contrast_losses(matrix, direction))


def test_an_estimator_applies_to_every_direction(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "largest", lambda logprobs, over: logprobs.amax(over).mean(1))
    matrix = torch.tensor([[[3.0, 1.0], [5.0, 2.0]]])  # columns 5 and 2, rows 3 and 5
    losses = [sami_loss(matrix, way, estimator="largest").item() for way in ("columns", "rows", "both")]
    assert losses == [3.5, 4.0, 3.75]
    assert information_bound(TWO).item() == pytest.approx(math.log(2) - TWO_COLUMNS, abs=1e-6)  # stays InfoNCE


@pytest.mark.parametrize(
    ("matrix", "columns", "rows"),
    [
        # Column maxima: 9 (own), 8 (row 0), 7 (own). Row maxima: 9 (own), 6 (column 0), 7 (own).
        ([[9.0, 8.0, 1.0], [6.0, 5.0, 2.0], [3.0, 4.0, 7.0]], 2 / 3, 2 / 3),
        # Column maxima: 9 (own), 8 (row 0). Row maxima: 9 (own), 5 (own).
        ([[9.0, 8.0], [1.0, 5.0]], 1 / 2, 1),
        # Column 0: own 5 ties with one other, 1/2. Column 1: own 1 loses to a tie of two. Column 2: 1. Rows: 1, 0, 0.
        ([[5.0, 4.0, 0.0], [5.0, 1.0, 0.0], [2.0, 4.0, 3.0]], 1 / 2, 1 / 3),
        ([[0.0, 0.0], [0.0, 0.0]], 1 / 2, 1 / 2),  # all tie: chance
    ],
    ids=["3x3", "2x2", "ties", "all tie"],
)
def test_accuracies_count_what_the_diagonal_wins_and_share_ties(matrix, columns, rows):
    logprobs = torch.tensor([matrix])
    assert column_accuracy(logprobs).tolist() == pytest.approx([columns])
    assert row_accuracy(logprobs).tolist() == pytest.approx([rows])


@pytest.mark.parametrize("figure", [sami_loss, information_bound, row_figure, column_accuracy, row_accuracy])
@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 3, 2), (1, 1, 1), (2, 2), (1, 1, 2, 2), (), (1, 0, 0)], ids=str)
def test_shapes_that_are_not_a_log_prob_matrix_are_refused(figure, shape):
    with pytest.raises(InputError, match=r"shape \(.*at least 2 constitutions"):
        figure(torch.zeros(shape))


def test_unknown_settings_are_refused():
    with pytest.raises(InputError, match=r"'diagonal'.*both, columns or rows"):
        sami_loss(TWO, "diagonal")
    with pytest.raises(InputError, match=r"'nwj', which does not exist.*infonce"):
        sami_loss(TWO, estimator="nwj")


@pytest.mark.parametrize("c", [2, 4])
def test_gradients_flow_through_every_cell(c):
    """The gradient of one cross-entropy is softmax minus one-hot, divided by C for the mean."""
    matrix = random_matrices(c, scale=1.0, contrasts=1).double().requires_grad_()
    one_hot = torch.eye(c)[None]
    expected = {name: (matrix.softmax(dim) - one_hot).detach() / c for name, dim in (("columns", 1), ("rows", 2))}
    expected["both"] = (expected["columns"] + expected["rows"]) / 2
    for direction, by_hand in expected.items():
        (gradient,) = torch.autograd.grad(sami_loss(matrix, direction), matrix)
        torch.testing.assert_close(gradient, by_hand)
        assert (gradient != 0).all()


def test_gradients_stay_finite_for_extreme_matrices():
    matrix = torch.tensor([[[0.0, -1e4], [-1e4, 0.0]], [[-1e4, 0.0], [0.0, -1e4]]], requires_grad=True)
    sami_loss(matrix).backward()
    assert matrix.grad is not None
    assert torch.isfinite(matrix.grad).all()
