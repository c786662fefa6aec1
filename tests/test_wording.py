"""Numbers as text."""

import pytest

from sami import wording
from sami.evaluation.bootstrap import Estimate

NOTHING = Estimate(None, None, None, 0)
ONE_QUERY = Estimate(0.5, None, None, 1)
LOSS = Estimate(-0.0795, -0.094, -0.064, 120)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.estimate(Estimate(0.1714, 0.155, 0.186, 9)), "0.171 [0.155, 0.186]"),
        (wording.estimate(ONE_QUERY, 1), "0.5"),
        (wording.estimate(NOTHING), "–"),
        (wording.share(Estimate(0.857, 0.8, 0.9, 9)), "86 % [80, 90]"),
        (wording.share(ONE_QUERY, 1, ""), "50.0"),
        (wording.percent(None), "–"),
        (wording.difference(LOSS, 2, "nats"), "-0.08 nats [-0.09, -0.06], n 120"),
        (wording.difference(ONE_QUERY), "+0.500, n 1"),
        (wording.difference(NOTHING), "–"),
        (wording.reading(LOSS), "less than base"),
        (wording.reading(Estimate(0.1, 0.0, 0.2, 9)), "no difference shown: the interval contains 0"),
        (wording.reading(ONE_QUERY), "too few queries for an interval"),
        (wording.reading(NOTHING), "not measured"),
        (wording.seconds(59.96), "1 min 0 s"),
        (wording.seconds(3 * 3600 + 61), "3 h 1 min"),
        (wording.seconds(12.34), "12.3 s"),
    ],
)
def test_figures_as_text(text, expected):
    assert text == expected
