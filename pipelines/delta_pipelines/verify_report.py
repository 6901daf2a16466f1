"""A verification as files: JUnit and JSON for CI, a histogram of errors and the worst photos for people."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np

from delta.colormaps import colorize
from delta.files import write_aside
from delta.panel import LINE_COLORS, save_picture, side_by_side
from delta.parity_report import DECADES, ParityReport
from delta_pipelines.verify import VerifyReport, Worst

PANELS_AT_MOST = 12


def write_all(report: VerifyReport, worst: Sequence[Worst], folder: Path) -> list[Path]:
    """Write report.json, junit.xml, histogram.png and worst.png into `folder`."""
    return [
        write_json(report, folder / "report.json"),
        write_junit(report, folder / "junit.xml"),
        draw_histogram(report.rows, folder / "histogram.png"),
        draw_worst(worst, folder / "worst.png"),
    ]


def write_junit(report: VerifyReport, path: Path) -> Path:
    """Write one test case for each file and provider, and one for the files' digests."""
    suite = ElementTree.Element("testsuite", name="delta verify")
    for row in report.rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname=row.candidate, name=f"{row.precision} {row.provider}"
        )
        if row.failures:
            ElementTree.SubElement(case, "failure", message="; ".join(row.failures))
        output = ElementTree.SubElement(case, "system-out")
        output.text = (
            f"max relative {row.max_relative:.3e}, p99 relative {row.p99_relative:.3e}, "
            f"delta1 change {row.delta1_change:.4%}, cosine {row.min_cosine:.9f}, {row.n_images} photos"
        )
    case = ElementTree.SubElement(suite, "testcase", classname="files", name="digests")
    if report.problems:
        ElementTree.SubElement(case, "failure", message="; ".join(report.problems))
    failed = sum(1 for row in report.rows if row.failures) + bool(report.problems)
    suite.set("tests", str(len(report.rows) + 1))
    suite.set("failures", str(failed))
    with write_aside(path) as aside:
        ElementTree.ElementTree(suite).write(aside, encoding="utf-8", xml_declaration=True)
    return path


def write_json(report: VerifyReport, path: Path) -> Path:
    """Write everything that was measured."""
    with write_aside(path) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(as_plain(report)), indent=2) + b"\n")
    return path


def as_plain(report: VerifyReport) -> dict:
    """Plain data, with the verdicts that a reader would look for first."""
    rows = [{"passed": row.passed, **msgspec.to_builtins(row)} for row in report.rows]
    return {"passed": report.passed, **msgspec.to_builtins(report), "rows": rows}


def draw_histogram(rows: Sequence[ParityReport], path: Path) -> Path:
    """Draw the share of pixels by relative error, a line for each file and provider."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    centers = np.arange(DECADES[0] - 1, DECADES[-1] + 1) + 0.5
    styles = ("-", "--", ":")
    for index, row in enumerate(rows):
        share = np.array(row.histogram) / max(sum(row.histogram), 1)
        label = f"{row.candidate}, {row.provider.removesuffix('ExecutionProvider')}"
        color, style = LINE_COLORS[index % len(LINE_COLORS)], styles[index // len(LINE_COLORS) % len(styles)]
        axes.step(centers, share, where="mid", color=color, linestyle=style, linewidth=1.8, label=label)
    axes.set_xlabel("absolute error / range of the reference, as a power of ten (the first bin: below 1e-10)")
    axes.set_ylabel("share of pixels")
    axes.grid(True, color="#d8dee4", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    with write_aside(path) as aside:
        figure.savefig(aside)
    return path


def draw_worst(worst: Sequence[Worst], path: Path) -> Path:
    """Draw the photo on which each comparison came out worst: reference, candidate, and where they differ."""
    rows, captions = [], []
    for each in sorted(worst, key=lambda case: -case.report.max_relative)[:PANELS_AT_MOST]:
        low, high = float(each.expected.min()), float(each.expected.max())
        maps = [colorize(side, "spectral", vmin=low, vmax=high) for side in (each.expected, each.found)]
        error = np.abs(each.found - each.expected)
        rows.append([each.image, *maps, colorize(error, "inferno", vmin=0.0)])
        provider = each.report.provider.removesuffix("ExecutionProvider")
        captions.append(
            f"{each.report.candidate}, {provider}: {each.name}, at most {each.report.max_relative:.1e} of the range"
        )
    return save_picture(
        side_by_side(rows, ["photo", "reference", "candidate", "difference, own scale"], captions), path
    )
