"""A report: what imbalance costs, what balancing gives back, whether it lasts, and what to run.

Figures first (`measure`), then the page (`render_page`) or the text (`print_report`) of them.
"""

from eplb.report.figures import Figures, Missing
from eplb.report.measure import STEPS, measure
from eplb.report.page import render_page
from eplb.report.text import print_report

__all__ = ["STEPS", "Figures", "Missing", "measure", "print_report", "render_page"]
