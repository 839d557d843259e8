"""What experiments found: tables, figures, and which of the expected signatures were seen."""

from interp.study.study import Drawing, Finding, Study, Table

__all__ = ["Drawing", "Finding", "Study", "Table"]
