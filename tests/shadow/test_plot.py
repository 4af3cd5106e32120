"""The picture of the posteriors."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from app.shadow.plot import HEIGHT_MAX, posterior_svg, rate_text

SVG = "{http://www.w3.org/2000/svg}"


def parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - it was made here


def points_of(picture: ET.Element) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]
        for line in picture.iter(f"{SVG}polyline")
    ]


def test_the_picture_is_svg_with_a_curve_and_a_line_of_text_for_each_variant() -> None:
    picture = parse(posterior_svg(["control", "blue"], [100, 130], [1000, 1000]))

    assert picture.tag == f"{SVG}svg"
    assert len(points_of(picture)) == 2
    texts = " ".join(text.text or "" for text in picture.iter(f"{SVG}text"))
    assert "control: 100 of 1,000" in texts
    assert "blue: 130 of 1,000" in texts


def test_a_higher_rate_peaks_farther_right_and_a_surer_one_higher() -> None:
    low, high, sure = points_of(parse(posterior_svg(["a", "b", "c"], [50, 60, 500], [500, 500, 5000])))

    peaks = [min(curve, key=lambda point: point[1]) for curve in (low, high, sure)]
    assert peaks[0][0] < peaks[1][0]
    assert peaks[2][1] < peaks[0][1]


def test_every_interval_of_twenty_has_a_line_of_its_own_above_the_names() -> None:
    picture = parse(posterior_svg([f"v{number}" for number in range(20)], [5] * 20, [5] * 20))

    bars = [line.attrib for line in picture.iter(f"{SVG}line") if line.get("stroke-width") == "2"]
    assert len({bar["y1"] for bar in bars}) == len(bars) == 20
    first_name = min(float(text.attrib["y"]) for text in picture.iter(f"{SVG}text") if (text.text or "").startswith("v"))
    assert max(float(bar["y1"]) for bar in bars) < first_name - 12


def test_names_cannot_break_out_of_the_picture() -> None:
    text = posterior_svg(["</text><script>alert(1)</script>", "a&b\x00"], [1, 2], [10, 10])

    assert "<script" not in text
    parse(text)


@pytest.mark.parametrize(("successes", "samples"), [([0], [0]), ([0, 0], [10**9, 0]), ([5] * 20, [5] * 20), ([0], [10**12])])
def test_extreme_counts_stay_within_the_frame(successes: list[int], samples: list[int]) -> None:
    text = posterior_svg([f"v{number}" for number in range(len(samples))], successes, samples)

    picture = parse(text)
    width, height = map(float, picture.attrib["viewBox"].split()[2:])
    assert height <= HEIGHT_MAX
    assert not re.search(r"nan|inf", text)
    for curve in points_of(picture):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in curve)


@pytest.mark.parametrize(
    ("rate", "text"), [(0.1, "10.0 %"), (0.0123, "1.23 %"), (0.00012345, "0.0123 %"), (1.0, "100 %"), (0.0, "0 %")]
)
def test_a_rate_is_written_with_three_digits(rate: float, text: str) -> None:
    assert rate_text(rate) == text


def test_every_variant_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name"):
        posterior_svg(["a"], [1, 2], [3, 4])
