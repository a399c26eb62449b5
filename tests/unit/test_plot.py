"""The plot of `make bench`: bars of what was measured, and none where rounds disagree."""

import copy
import xml.etree.ElementTree as ET

import pytest
from bench.plot import MissingRowsError, draw, panels, write

SVG = "{http://www.w3.org/2000/svg}"


def figure(*rounds: float) -> dict:
    return {"median": sorted(rounds)[len(rounds) // 2], "rounds": list(rounds)}


def row(what: str, **rounds: tuple[float, ...]) -> dict:
    figures = {name.replace("_", " "): {what: figure(*each)} for name, each in rounds.items()}
    return {"load_average": 0.4, "figures": figures}


RESULT = {
    "machine": {"cores": 2, "cpu": "A <fast> CPU", "kernel": "6.1", "python": "3.11"},
    "checks": row(
        "per_second",
        E0=(6000, 6200, 6100),
        E1=(4000, 4100, 4200),
        E1w=(3000, 3100, 3200),
        ours=(1500, 1550, 1600),
    ),
    "sixteen": row(
        "per_second",
        Envoy_alone=(9000, 9100, 9200),
        E1=(3000, 3100, 3200),
        ours=(1000, 1050, 1100),
        LiteLLM=(70, 80, 90),
    ),
    "latency": row(
        "p50_us",
        Envoy_alone=(300, 310, 320),
        E1=(900, 910, 920),
        E1w=(1200, 1210, 1220),
        ours=(1300, 1310, 1320),
    ),
}


def bars(svg: str) -> list[ET.Element]:
    return ET.fromstring(svg).findall(f"{SVG}rect")


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ET.fromstring(svg).findall(f"{SVG}text")]


def test_each_figure_has_a_bar_as_long_as_it_is_large():
    svg = draw(RESULT)

    widths = [float(bar.attrib["width"]) for bar in bars(svg)]
    assert len(widths) == 4 + 4 + 3
    assert widths[0] / widths[3] == pytest.approx(6100 / 1550, rel=0.01)
    assert [bar.attrib["class"] for bar in bars(svg)].count("bar ours") == 3
    assert "1,550 (1,500-1,600)" in texts(svg)


def test_what_is_added_to_a_call_is_without_what_envoy_takes_itself():
    added = panels(RESULT)[2].bars
    assert {name: one.median for name, one in added.items()} == {
        "E1": 600, "E1w": 900, "ours": 1000,
    }  # fmt: skip


def test_rounds_that_disagree_are_a_range_and_no_bar():
    result = copy.deepcopy(RESULT)
    result["checks"]["figures"]["ours"]["per_second"] = figure(500, 1000, 2000)

    svg = draw(result)

    assert len(bars(svg)) == 4 + 4 + 2
    assert "rounds disagree: 500 to 2,000" in texts(svg)


def test_it_says_on_what_it_was_measured_and_how_busy_that_was():
    said = " ".join(texts(draw(RESULT)))
    assert "A <fast> CPU" in said
    assert "load average 0.4 to 0.4" in said


def test_a_plot_stays_as_it_is_where_a_row_was_not_measured(tmp_path, capsys):
    plot = tmp_path / "plot.svg"
    without = copy.deepcopy(RESULT)
    del without["sixteen"]["figures"]["LiteLLM"]

    with pytest.raises(MissingRowsError):
        draw(without)
    assert not write(without, plot)
    assert not plot.exists()
    assert "LiteLLM" in capsys.readouterr().out
    assert write(RESULT, plot)
    assert plot.read_text() == draw(RESULT)
