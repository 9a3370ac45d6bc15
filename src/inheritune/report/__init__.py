"""A run directory as a page to read: the verdict, the table, the curves, and all that is needed to do it again.

It reads records and nothing else, so that it also works on a run that is going on, was cut short, or came from another
machine. What is missing or unreadable is marked as a gap on the page. jinja2, matplotlib and rich are imported where
they are used; this package imports no torch. An evaluation comes as tables, as a figure, and into a model card;
a plan as tables.
"""

from inheritune.report.content import check_runs, usage
from inheritune.report.degeneracy import degeneracy_svg, degeneracy_table
from inheritune.report.depth import candidates_table, depth_svg, layers_table
from inheritune.report.evaluation import latex_evaluation, markdown_evaluation, render_evaluation
from inheritune.report.evaluation_figure import evaluation_svg
from inheritune.report.exports import write_exports
from inheritune.report.live import Following, live
from inheritune.report.model_card import card_with_results, model_index
from inheritune.report.page import render_report, write_comparison, write_report
from inheritune.report.plan import render_plan, three_lines
from inheritune.report.run_card import write_card
from inheritune.report.scan import scan_svg, scan_table
from inheritune.report.table import Row, markdown_table, render_table, table_rows
from inheritune.report.table1 import latex_table1, markdown_table1, render_table1, table1_sheet
from inheritune.report.table4 import markdown_table4, render_table4, table4_rows
from inheritune.report.watch import served

__all__ = [
    "Following",
    "Row",
    "candidates_table",
    "card_with_results",
    "check_runs",
    "degeneracy_svg",
    "degeneracy_table",
    "depth_svg",
    "evaluation_svg",
    "latex_evaluation",
    "latex_table1",
    "layers_table",
    "live",
    "markdown_evaluation",
    "markdown_table",
    "markdown_table1",
    "markdown_table4",
    "model_index",
    "render_evaluation",
    "render_plan",
    "render_report",
    "render_table",
    "render_table1",
    "render_table4",
    "scan_svg",
    "scan_table",
    "served",
    "table1_sheet",
    "table4_rows",
    "table_rows",
    "three_lines",
    "usage",
    "write_card",
    "write_comparison",
    "write_exports",
    "write_report",
]
