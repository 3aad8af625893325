"""`soda scaling report` and `pitfalls`: files, marks at the fitted values, missing parts, bad input."""

import dataclasses
import json
import re
import sys
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from laws import LAWS, planted, rows_of, write

from soda_jax import cli
from soda_jax.errors import UserError
from soda_jax.scaling.figures.classes import class_optima_figure, classes_figure
from soda_jax.scaling.figures.contours import FRONTIER, contour_levels, contours_figure
from soda_jax.scaling.figures.fitted import fitted_runs
from soda_jax.scaling.figures.isoflop import PARABOLA_MINIMUM, SURFACE_MINIMUM, isoflop_figure
from soda_jax.scaling.figures.measured import (
    HELD_OUT,
    held_out_figure,
    measured_figure,
    predictions,
)
from soda_jax.scaling.figures.optima import (
    PARABOLA_MINIMA,
    SURFACE_LINE,
    optima_figure,
)
from soda_jax.scaling.figures.pitfalls import model_sizes, pitfall_figures
from soda_jax.scaling.figures.report import NAMES, missing, write_scaling_report
from soda_jax.scaling.figures.style import MARKERS, log_ticks, ordered_style
from soda_jax.scaling.fit import fit_table, to_text
from soda_jax.scaling.rules import soda
from soda_jax.scaling.table import read_runs

LAW, TEXT = LAWS[0], LAWS[1]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A planted table with two classes and runs at five budgets."""
    runs = planted(LAW, budgets=5, sizes=5, noise=0.002)
    text = TEXT.loss(runs.params, runs.tokens)
    columns = {"loss/text": text.tolist(), "loss/marker": ["", *text[1:].tolist()]}
    return write(tmp_path_factory.mktemp("table") / "runs.csv", rows_of(runs, **columns))


@pytest.fixture(scope="module")
def fit(table):
    """The fit of the planted table with few draws."""
    return json.loads(to_text(fit_table(read_runs(table), 20)))


@pytest.fixture
def fitted(table, fit):
    """The planted runs with their fit."""
    return fitted_runs(read_runs(table), fit)


@pytest.fixture
def held_out(tmp_path, table):
    """A table with one run beyond the planted ones, whose loss is 2% above the law."""
    params, tokens = 2e9, 4e11
    row = {"budget": 6 * params * tokens, "params": params, "tokens": tokens}
    row["loss"] = 1.02 * float(LAW.loss(params, tokens))
    row["loss/text"] = float(TEXT.loss(params, tokens))
    return write(tmp_path / "held_out.csv", [row])


def line(axis, label):
    """The data of the line with a label, `[2, points]`."""
    (found,) = [one for one in axis.lines if one.get_label() == label]
    return np.array(found.get_data())


def test_the_minima_of_the_curves_are_the_fitted_ones(fitted):
    by_params, by_tokens = isoflop_figure(fitted).axes
    n, d = fitted.optimum(fitted.surface, fitted.budgets)
    for axis, expected in ((by_params, n), (by_tokens, d)):
        x, y = line(axis, SURFACE_MINIMUM)
        np.testing.assert_allclose(x, expected)
        np.testing.assert_allclose(y, fitted.surface.loss(n, d))
    x, y = line(by_params, PARABOLA_MINIMUM)
    np.testing.assert_allclose(x, [one.minimum for one in fitted.parabolas.by_params])
    np.testing.assert_allclose(y, [one.loss for one in fitted.parabolas.by_params])


def test_a_slice_of_the_surface_is_lowest_at_its_marked_minimum(fitted):
    axis = isoflop_figure(fitted).axes[0]
    slices = [one for one in axis.lines if one.get_linestyle() == "-" and len(one.get_xdata()) > 9]
    best = line(axis, SURFACE_MINIMUM)[0]
    assert len(slices) == len(best) == 5
    for one, expected in zip(slices, best, strict=True):
        x, y = one.get_data()
        assert x[np.argmin(y)] == pytest.approx(expected, rel=0.05)


def test_the_runs_are_drawn_where_they_were_measured(fitted):
    axis = isoflop_figure(fitted).axes[0]
    x, y = line(axis, "1e18")
    chosen = fitted.runs.budget == 1e18
    np.testing.assert_array_equal(x, np.sort(fitted.runs.params[chosen]))
    np.testing.assert_array_equal(
        y, fitted.runs.loss[chosen][np.argsort(fitted.runs.params[chosen])]
    )


def test_optimum_lines_agree_with_the_planted_law(fitted):
    figure = optima_figure(fitted)
    for axis, number in zip(figure.axes, (0, 1), strict=True):
        budgets, values = line(axis, SURFACE_LINE)
        np.testing.assert_allclose(values, LAW.optimum(budgets / 6)[number], rtol=0.15)
        assert len(axis.collections) == 2  # the bands of variable projection and approach 2
    budgets, minima = line(figure.axes[0], PARABOLA_MINIMA)
    np.testing.assert_allclose(minima, [one.minimum for one in fitted.parabolas.by_params])


def test_a_fit_without_draws_has_no_band(table, fit):
    fit = {name: value for name, value in fit.items() if name not in ("draws", "intervals")}
    fitted = fitted_runs(read_runs(table), fit)
    assert not any(axis.collections for axis in optima_figure(fitted).axes)
    assert any(reason.startswith("intervals:") for reason in missing(fitted, None))


def test_the_frontier_has_the_lowest_loss_of_its_flops(fitted):
    n, d = line(contours_figure(fitted).axes[0], FRONTIER)
    for factor in (0.9, 1.1):
        tokens = d * factor**-fitted.power
        assert (fitted.surface.loss(n * factor, tokens) >= fitted.surface.loss(n, d)).all()


def test_contour_levels_ascend_and_a_flat_surface_has_none():
    assert (np.diff(contour_levels(np.linspace(2, 4, 100))) > 0).all()
    assert not len(contour_levels(np.full(100, 2.0)))


def test_each_class_has_a_panel_and_a_row(fitted):
    assert [axis.get_title() for axis in classes_figure(fitted).axes[:2]] == ["text", "marker"]
    lines, sizes, _ = class_optima_figure(fitted).axes
    budgets, values = line(lines, "text")
    np.testing.assert_allclose(values, TEXT.optimum(budgets / 6)[0], rtol=0.02)
    assert [text.get_text() for text in sizes.get_yticklabels()] == ["all", "text", "marker"]


def test_held_out_runs_are_predicted_for_the_loss_and_the_classes(fitted, held_out):
    runs = read_runs(held_out)
    total, text = predictions(fitted, runs)
    assert total.error[0] == pytest.approx(1 / 1.02 - 1, abs=0.005)
    assert text.error[0] == pytest.approx(0, abs=1e-4)
    assert total.interval[0, 0] <= total.predicted[0] <= total.interval[1, 0]
    measured, predicted = line(measured_figure(fitted, runs, [total, text]).axes[0], HELD_OUT)
    assert (measured[0], predicted[0]) == (runs.loss[0], total.predicted[0])


def test_the_report_has_all_figures_as_svg_and_png(tmp_path, table, fit, held_out, capsys):
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    out = tmp_path / "out"
    options = [f"--fit={tmp_path / 'fit.json'}", f"--held_out={held_out}", f"--out={out}"]
    assert cli.main(["scaling", "report", table, *options]) == 0
    expected = {f"{name}.{suffix}" for name in NAMES for suffix in ("svg", "png")}
    assert {file.name for file in out.iterdir()} == {*expected, "report.html"}
    for file in out.glob("*.svg"):
        assert ET.parse(file).getroot().tag.endswith("svg")
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len(NAMES)
    assert "src=" not in page and "<script" not in page
    for text in ("variable projection", "approach 3", "approach 2", "Held-out runs", "25 runs"):
        assert text in page
    assert "interval of approach 3" in capsys.readouterr().out


def test_names_of_a_table_are_text_on_the_page_and_in_the_figures(tmp_path):
    runs = planted(LAW, budgets=4, sizes=4)
    name = r"<b>$\frac$</b>"
    losses = {f"loss/{name}": TEXT.loss(runs.params, runs.tokens).tolist()}
    fitted_on = read_runs(write(tmp_path / "<i>runs.csv", rows_of(runs, **losses)))
    fitted = fitted_runs(fitted_on, fit_table(fitted_on, 0))
    params, tokens = 2e9, 4e11
    row = {"budget": 6 * params * tokens, "params": params, "tokens": tokens, "loss": 2.0}
    row[f"loss/{name}"] = 2.0
    held_out = read_runs(write(tmp_path / "held_out.csv", [row]))
    write_scaling_report(str(tmp_path / "out"), fitted, held_out, formats=("svg",))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;b&gt;" in page and "&lt;i&gt;runs.csv" in page


def test_the_runs_have_width_learning_rate_start_and_end(tmp_path):
    runs = planted(LAW, budgets=4, sizes=4)
    order = np.argsort(runs.tokens)  # rows that are set aside must not shift the cells
    rows = rows_of(runs, lr=0.012345678, started="2026-11-30T22:51:23+00:00", ended="<now>")
    for row in rows:
        row["width"] = 100 * round(row["params"] / 1e6)
    rows = [{**rows[0], "loss": "", "width": 1}, *(rows[index] for index in order)]
    found = read_runs(write(tmp_path / "runs.csv", rows))
    assert found.details["width"].tolist() == [str(100 * round(n / 1e6)) for n in found.params]
    write_scaling_report(
        str(tmp_path / "out"), fitted_runs(found, fit_table(found, 0)), formats=("svg",)
    )
    page = (tmp_path / "out" / "report.html").read_text()
    table = page[page.index("<summary>16 runs</summary>") :]
    head = ("budget", "N", "D", "width", "lr", "loss", "fitted", "error, %", "started", "ended")
    assert "".join(f"<th>{name}</th>" for name in head) in table
    first = table.split("<tr>")[2]
    cells = re.findall("<td>(.*?)</td>", first)
    assert cells[3:5] == [str(100 * round(runs.params[:4].min() / 1e6)), "0.01235"]
    assert cells[-2:] == ["2026-11-30 22:51:23 UTC", "&lt;now&gt;"]


def test_missing_parts_are_named_and_not_drawn(tmp_path):
    runs = planted(LAW, budgets=4, sizes=2)
    file = write(tmp_path / "runs.csv", rows_of(runs))
    runs = read_runs(file)
    fitted = fitted_runs(runs, fit_table(runs, 0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "classes.svg").write_text("of an earlier call")
    lines = write_scaling_report(str(tmp_path / "out"), fitted, formats=("svg",))
    reasons = "\n".join(lines)
    for part in ("classes of tokens", "intervals", "approach 2: budget 1e+18", "held-out runs"):
        assert f"left out: {part}" in reasons
    names = {file.stem for file in (tmp_path / "out").glob("*.svg")}
    assert names == {"isoflop", "optima", "contours", "measured"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no column loss/CLASS" in page and "Held-out runs" not in page


def test_a_surface_without_optimum_is_drawn_without_minima(tmp_path):
    runs = planted(LAW, budgets=4, sizes=4)
    runs = dataclasses.replace(runs, loss=LAW.loss(np.full(len(runs), 1e9), runs.tokens))
    runs = read_runs(write(tmp_path / "runs.csv", rows_of(runs)))
    lines = write_scaling_report(str(tmp_path / "out"), fitted_runs(runs, fit_table(runs, 10)))
    assert any("optimum of the surface" in line for line in lines)


def test_the_legend_of_many_held_out_runs_leaves_room_for_the_axes(tmp_path, fitted):
    runs = planted(LAW, budgets=4, sizes=6)
    rows = rows_of(dataclasses.replace(runs, params=runs.params * 1.003))
    held_out = read_runs(write(tmp_path / "held_out.csv", rows))
    figure = held_out_figure(held_out, predictions(fitted, held_out))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns if the axes have no space
        figure.savefig(tmp_path / "held_out.svg")
    assert figure.axes[0].get_position().height * figure.get_figheight() > 0.5


def test_a_table_without_these_columns_has_no_empty_ones(tmp_path, fitted):
    write_scaling_report(str(tmp_path), fitted, formats=("svg",))
    page = (tmp_path / "report.html").read_text()
    assert "<th>marker</th></tr>" in page and "<th>width</th>" not in page


def _error(capsys, *arguments):
    assert cli.main(["scaling", *map(str, arguments)]) == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    return text


def test_a_fit_of_another_table_is_refused(tmp_path, fit, capsys):
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    other = write(tmp_path / "other.csv", rows_of(planted(LAW)))
    out = tmp_path / "out"
    options = ("report", other, f"--fit={tmp_path / 'fit.json'}", f"--out={out}")
    assert "it was fitted to runs.csv" in _error(capsys, *options)
    assert not out.exists()


@pytest.mark.parametrize("content", ["{}", "[]", "text", '{"n": 3}'])
def test_a_file_that_is_no_fit_is_refused(tmp_path, table, capsys, content):
    (tmp_path / "fit.json").write_text(content)
    text = _error(capsys, "report", table, f"--fit={tmp_path / 'fit.json'}", f"--out={tmp_path}/o")
    assert "is not a fit" in text and "write it with soda scaling fit" in text


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("classes", None),
        ("classes", {"text": None}),
        ("approach3", {}),
        ("flops_law", {"constant": 0, "power": 1}),
        ("flops_law", None),
        ("draws", {"alpha": [1.0]}),
        ("intervals", None),
        ("warnings", None),
        ("left_out_error", {"x": {}}),
        ("approach2_bias", {"a": 0.1}),
    ],
)
def test_a_fit_with_a_damaged_part_is_refused(tmp_path, table, fit, capsys, part, value):
    (tmp_path / "fit.json").write_text(json.dumps({**fit, part: value}))
    text = _error(capsys, "report", table, f"--fit={tmp_path / 'fit.json'}", f"--out={tmp_path}/o")
    assert "fit.json is not a fit" in text
    assert not (tmp_path / "o").exists()


def test_a_fitted_run_is_not_held_out(tmp_path, table, fit, capsys):
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    fit_option = f"--fit={tmp_path / 'fit.json'}"
    text = _error(capsys, "report", table, fit_option, f"--held_out={table}", f"--out={tmp_path}/o")
    assert "must not be in the fitted table" in text
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("column", ["tokenizer", "vocabulary", "normalizer"])
def test_held_out_runs_of_another_tokenizer_are_refused(tmp_path, fitted, column):
    file = write(tmp_path / "b.csv", rows_of(planted(LAW, budgets=2, sizes=3), **{column: "b"}))
    source = {**fitted.runs.source, "comparable": {column: "a"}}
    fitted = dataclasses.replace(fitted, runs=dataclasses.replace(fitted.runs, source=source))
    with pytest.raises(UserError, match=f"b.csv has {column} b, but the fitted runs have a"):
        predictions(fitted, read_runs(file))


def test_bad_options_are_refused(tmp_path, table, capsys):
    (tmp_path / "file").write_text("")
    assert "is a file" in _error(capsys, "report", table, f"--out={tmp_path / 'file' / 'x'}")
    assert "/proc cannot be written" in _error(capsys, "pitfalls", "--out=/proc/x")
    assert "must be svg, png" in _error(capsys, "pitfalls", f"--out={tmp_path}/o", "--formats=pdf")
    text = _error(capsys, "report", table, "--fit=x", "--select", "a=b", f"--out={tmp_path}/o")
    assert "not both" in text
    twice = ("--select", "loss=1", "--select", "loss=2")
    text = _error(capsys, "report", table, *twice, f"--out={tmp_path}/o")
    assert "loss already has the value 1" in text


def test_without_matplotlib_the_extra_is_named(tmp_path, table, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "soda-jax[demo]" in _error(capsys, "report", table, f"--out={tmp_path}/o")
    assert not (tmp_path / "o").exists()


def test_nothing_is_written_if_a_figure_fails(tmp_path, fitted, monkeypatch):
    from soda_jax.scaling.figures import output

    monkeypatch.setattr(output, "png", lambda figure: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scaling_report(str(tmp_path / "out"), fitted)
    assert not (tmp_path / "out").exists()


def test_pitfalls_are_drawn_from_the_models_of_the_paper():
    drawn = {one.name: one.figure for one in pitfall_figures()}
    assert len(drawn) == 4
    widths, ratio = line(drawn["scaling_six_nd"].axes[0], "N with embedding and head")
    shape = soda().shape(256)
    flops = 3 * shape.forward_flops_per_token(144_644, 4096)
    known = ratio[widths == 256]
    assert known == pytest.approx(flops / (6 * shape.parameters(144_644)))
    shares = dict(zip(*line(drawn["scaling_head"].axes[0], "all 144,644 ids"), strict=True))
    assert shares[256] == pytest.approx(80, abs=1) and shares[2048] == pytest.approx(15, abs=1)
    _, moved = line(drawn["scaling_head"].axes[1], "D*, legal / all ids")
    assert (np.diff(moved) < 0).all() and moved[-1] > 1
    rates = line(drawn["scaling_lr_cap"].axes[1], "3e20, with the cap")[1]
    assert rates.max() <= 0.01


def test_model_sizes_are_those_of_the_plan():
    params, flops = model_sizes([768], head_rows=1000)
    shape = soda().shape(768)
    assert params[0] == shape.parameters(144_644)
    assert flops[0] == 3 * shape.forward_flops_per_token(144_644, 4096, 1000)


def test_budgets_differ_in_marker_and_color():
    styles = [ordered_style(index, 20) for index in range(20)]
    assert len({(one["marker"], one["markerfacecolor"] == "none") for one in styles}) == 20
    assert len({one["marker"] for one in styles}) == len(MARKERS)


@pytest.mark.parametrize(("low", "high"), [(1e18, 1e20), (0.4, 40), (7e7, 8e7), (1e3, 1e30)])
def test_log_axes_have_two_to_seven_ticks(low, high):
    ticks = log_ticks(low, high, 7)
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
