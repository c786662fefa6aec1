"""The HTML report of a run, written from the files of its folder alone.

from sami.report import write_report
write_report(["runs/quickstart"])
"""

from sami.report.page import write_report

__all__ = ["write_report"]
