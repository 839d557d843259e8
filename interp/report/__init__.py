"""A study, or a sweep's run directory, as one HTML page that opens without a network."""

from interp.report.page import report_page, write_report
from interp.report.reading import Shown, read

__all__ = ["Shown", "read", "report_page", "write_report"]
