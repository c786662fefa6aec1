"""Scales, ticks and labels of pictures."""

import pytest

from sami.report.plots.panel import span, ticks
from sami.report.plots.svg import fitted, text_width


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 0.776, ["0.0", "0.2", "0.4", "0.6"]),
        (-0.013, 0.096, ["0.000", "0.025", "0.050", "0.075"]),
        (47.2, 66.0, ["50", "55", "60", "65"]),
        (-1200.0, 9000.0, ["0", "2500", "5000", "7500"]),
        (0.0, 11.0, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (-0.3, -0.1, ["-0.30", "-0.25", "-0.20", "-0.15", "-0.10"]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, labels):
    made = ticks(low, high)
    assert [label for _, label in made] == labels
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in made)
    assert [float(label) for label in labels] == pytest.approx([value for value, _ in made])


@pytest.mark.parametrize("high", [1.5, 3, 12, 250, 4001])
def test_ticks_of_steps_are_whole_numbers(high):
    made = ticks(1, high, whole=True)
    assert 1 <= len(made) <= 6
    assert all(value == int(label) for value, label in made)


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, 4.0]])
def test_a_span_holds_its_values_and_is_never_empty(values):
    low, high = span(values)
    assert low < min(values) <= max(values) < high


def test_long_names_are_shortened_and_wide_letters_count_more():
    assert fitted("short", 100) == "short"
    shortened = fitted("a long name of a principle", 60)
    assert shortened.endswith("…")
    assert text_width(shortened) <= 60
    assert text_width("漢字") > text_width("ab")
