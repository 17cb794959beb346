"""Reports: Cards as one self-contained HTML page with charts."""

from tersor.report.comparison import AXES, labels_of, measured
from tersor.report.page import report_page
from tersor.report.sections import limits_of, outcome_of

__all__ = ["AXES", "labels_of", "limits_of", "measured", "outcome_of", "report_page"]
