"""Reports: Cards as one self-contained HTML page with charts."""

from tersor.pages.comparison import AXES, labels_of, measured, unlike
from tersor.pages.page import report_page
from tersor.pages.sections import limits_of, outcome_of

__all__ = ["AXES", "labels_of", "limits_of", "measured", "outcome_of", "report_page", "unlike"]
