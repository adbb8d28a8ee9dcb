"""The page of the drift report: what is in it, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import re
import types
from html.parser import HTMLParser

import chromium
import numpy as np
import pytest
from onnx_models import batch_norm_node, make_model

from cbn.export.recalibration.judge.heldout import HeldOut
from cbn.export.recalibration.measure.observed import Observed
from cbn.export.recalibration.measure.targets import choose_targets
from cbn.export.recalibration.report.drift import drift_from
from cbn.export.recalibration.report.page import render, write_page

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x.png>\"'&"

SIDES = (("x", "width"), ("y", "height"))

needs_browser = pytest.mark.skipif(chromium.find() is None, reason="no Chromium on PATH")


def make_report(widths=(4, 6, 8), names=None, samples=20, drifting=1.0):
    """A report over batch norms of these numbers of channels; later ones drift more."""
    generator = np.random.default_rng(3)
    nodes, arrays, seen = [], {}, {}
    for index, width in enumerate(widths):
        inputs = [f"{kind}{index}" for kind in "sbmv"]
        node = batch_norm_node(y=f"y{index}", inputs=inputs)
        node.name = names[index] if names else f"/stage{index}/bn"
        nodes.append(node)
        mean, var = generator.normal(size=width), generator.gamma(2, 0.5, width)
        stored = zip(inputs, (np.ones(width), np.zeros(width), mean, var), strict=True)
        arrays.update({name: array.astype(np.float32) for name, array in stored})
        observed = mean + drifting * index * generator.normal(size=width)
        means = observed + np.sqrt(var / 50) * generator.normal(size=(samples, width))
        squares = np.broadcast_to(var * 9 * (1 + index), (samples, width))
        seen[node.name] = Observed.of_samples(means, squares, 9)
    outputs = [f"y{index}" for index in range(len(widths))]
    return drift_from(choose_targets(make_model(nodes, arrays=arrays, outputs=outputs)), seen)


def held_out(**changes):
    fields = {"samples": 90, "kind": "scores", "output": "scores<b>", "change": 0.4}
    fields |= {"agreement": 0.875, "entropy_before": 0.5, "entropy_after": 0.25}
    return HeldOut(**{**fields, **changes})


def evidence():
    rows = [types.SimpleNamespace(cells=lambda: ("/stage0/bn", "12.5"))]
    return types.SimpleNamespace(columns=("node", "samples"), rows=rows, warnings=("few & far",))


class Reader(HTMLParser):
    """Tables as lists of rows of text, and all tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tables, self.text = [], [], ""
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._in_cell = False

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()


def test_every_number_is_in_a_table():
    report = make_report()
    layers, *channels = Reader(render(report)).tables
    assert [line[1] for line in layers[1:]] == [row.name for row in report.rows]
    for row, (_, *lines) in zip(report.rows, channels, strict=True):
        found = np.array(lines, dtype=float)
        np.testing.assert_array_equal(found[:, 0], np.arange(row.channels))
        expected = (
            row.stored_mean,
            row.observed_mean,
            row.stored_var,
            row.observed_var,
            row.shift,
            row.var_ratio,
            row.kl,
        )
        np.testing.assert_allclose(found[:, 1:], np.stack(expected, axis=1), rtol=6e-4)


def test_verdicts_are_on_the_page():
    report = make_report()
    text = Reader(render(report)).text
    assert report.verdicts
    for verdict in report.verdicts:
        assert verdict in text


def test_names_of_the_model_are_text_and_nothing_else():
    names = [HOSTILE, "b", "c"]
    page = render(make_report(names=names), held_out=held_out(metric=HOSTILE), title=HOSTILE)
    assert HOSTILE not in page
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in reader.tags}
    assert reader.tables[0][1][1] == HOSTILE


def test_nothing_comes_from_the_net():
    page = render(make_report(), evidence(), held_out())
    reader = Reader(page)
    for _, attributes in reader.tags:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_security_policy_lets_this_script_alone_run():
    page = render(make_report())
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_outputs_before_and_after_are_shown_when_given():
    assert "before and after" not in render(make_report())
    given = held_out(metric="top-1", metric_before=0.2, metric_after=0.975)
    _, *rows = Reader(render(make_report(), held_out=given)).tables[1]
    assert rows == [
        ["agreement", "", "87.5 %"],
        ["entropy, 0 sure to 1 a guess", "0.5", "0.25"],
        ["top-1", "0.2", "0.975"],
        ["change of the outputs, in parts of their deviation", "", "0.4"],
    ]


def test_outputs_without_classes_show_their_change_alone():
    given = held_out(agreement=None, entropy_before=None, entropy_after=None)
    reader = Reader(render(make_report(), held_out=given))
    assert len(reader.tables[1]) == 2
    assert reader.tables[1][1][2] == "0.4"


def test_evidence_and_its_warnings_are_shown_when_given():
    reader = Reader(render(make_report(), evidence()))
    assert ["/stage0/bn", "12.5"] in reader.tables[1]
    assert "few & far" in reader.text


def test_a_page_for_a_resnet50_is_small():
    blocks = ((64, 3), (128, 4), (256, 6), (512, 3))
    widths = [64] + [width for w, n in blocks for width in [w, w, 4 * w] * n + [4 * w]]
    assert (len(widths), sum(widths)) == (53, 26560)
    assert len(render(make_report(widths)).encode()) < 3_000_000


def test_numbers_that_are_not_finite_make_a_page_too():
    report = make_report()
    row = report.rows[1]
    row.kl[2] = row.shift[2] = np.nan
    row.observed_var[2] = np.inf
    assert "nan" in Reader(render(report)).tables[2][3]


def test_it_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "drift.html"
    write_page(path, make_report(), title="mine")
    assert path.read_text(encoding="utf-8") == render(make_report(), title="mine")
    assert [file.name for file in tmp_path.iterdir()] == ["drift.html"]
    with pytest.raises(OSError, match=r"cannot write .*drift.html: there is no folder .*nowhere"):
        write_page(tmp_path / "nowhere" / "drift.html", make_report())


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page of a model with a hostile name in a browser, and its report."""
    if chromium.find() is None:
        pytest.skip("no Chromium on PATH")
    folder = tmp_path_factory.mktemp("page")
    report = make_report(names=["/a/bn", HOSTILE, "/c/bn"])
    write_page(folder / "drift.html", report, evidence(), held_out(), title=HOSTILE)
    with chromium.Page(folder / "drift.html", folder / "profile") as page:
        yield page, report


def text_of(page, identifier):
    return page.evaluate(f"document.getElementById({identifier!r}).textContent")


@needs_browser
def test_a_browser_has_nothing_to_complain_of_and_asks_for_nothing(opened):
    page, _ = opened
    told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert page.named(*told) == []
    asked = [event["params"]["request"]["url"] for event in page.named("Network.requestWillBeSent")]
    assert len(asked) == 1
    assert asked[0].startswith("file:")


@needs_browser
def test_the_plots_show_each_channel_of_the_layer_that_drifts_most(opened):
    page, report = opened
    worst = next(row for row in report.rows if row.rank == 1)
    page.evaluate(f"document.querySelectorAll('.strip a')[{worst.position - 1}].click()")
    assert page.evaluate("document.querySelectorAll('#plots .point').length") == 2 * worst.channels
    chosen = "document.getElementById('layer-choice').selectedOptions[0].textContent"
    assert page.evaluate(chosen) == f"{worst.position}: {worst.name}"


@needs_browser
def test_keys_go_through_the_channels_the_largest_drift_first(opened):
    page, report = opened
    page.evaluate("document.querySelectorAll('.strip a')[2].click()")
    page.evaluate("document.querySelector('#plots svg').focus()")
    order = np.argsort(-report.rows[2].kl, kind="stable")
    for channel in order[:3]:
        page.press("ArrowRight")
        assert text_of(page, "channel-said").startswith(f"channel {channel}: mean ")
    page.press("ArrowLeft")
    assert text_of(page, "channel-said").startswith(f"channel {order[1]}: mean ")


@needs_browser
def test_pointing_at_a_channel_tells_its_numbers(opened):
    page, report = opened
    page.evaluate("document.querySelectorAll('.strip a')[0].click()")
    page.evaluate("document.getElementById('plots').scrollIntoView()")
    box = "document.querySelectorAll('#plots .point')[3].getBoundingClientRect()"
    page.point(*(page.evaluate(f"{box}.{near} + {box}.{size} / 2") for near, size in SIDES))
    row = report.rows[0]
    told = text_of(page, "channel-said")
    assert told.startswith(f"channel 3: mean {row.stored_mean[3]:.4g} stored, ")
    assert f"{row.observed_mean[3]:.4g} observed ({row.shift[3]:.4g} deviations)" in told


@needs_browser
def test_a_layer_of_the_strip_tells_its_numbers_and_names(opened):
    page, report = opened
    page.evaluate("document.querySelectorAll('.strip a')[1].focus()")
    told = text_of(page, "layer-said")
    assert told.startswith(f"layer 2, {HOSTILE}: shift {report.rows[1].typical_shift:.2f} dev")
    label = "document.querySelectorAll('.strip a')[1].getAttribute('aria-label')"
    assert page.evaluate(label) == told


@needs_browser
def test_the_table_of_layers_is_sorted_by_its_headers(opened):
    page, _ = opened
    rows = "[...document.querySelectorAll('table.layers tbody tr')]"
    column = f"{rows}.map(row => row.cells[9].textContent).join()"
    page.evaluate("document.querySelectorAll('table.layers th button')[9].click()")
    assert page.evaluate(column) == "1,2,3"
    page.evaluate("document.querySelectorAll('table.layers th button')[9].click()")
    assert page.evaluate(column) == "3,2,1"
    sort = "document.querySelectorAll('table.layers th')[9].getAttribute('aria-sort')"
    assert page.evaluate(sort) == "descending"


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_in_light_and_dark(tmp_path, dark):
    write_page(tmp_path / "drift.html", make_report(), evidence(), held_out())
    with chromium.Page(tmp_path / "drift.html", tmp_path / "profile", dark=dark, width=420) as page:
        shot = page.screenshot()
        style = "getComputedStyle(document.querySelector({!r})).{}"
        back = luminance(page.evaluate(style.format("body", "backgroundColor")))
        for place in ("body", ".quiet", "figcaption"):
            ink = luminance(page.evaluate(style.format(place, "color")))
            # WCAG 2.2, success criterion 1.4.3: 4.5 to 1.
            assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) > 4.5
        assert (back < 0.1) == dark
        wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 420
    assert shot.startswith(b"\x89PNG")
    assert len(shot) > 20_000


def luminance(color):
    """Relative luminance of rgb(r, g, b), after WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
