"""Reports: one HTML file, offline, of a run or of a frontier of runs."""

from rlhf_pg.report.data import FrontierReport, RunReport
from rlhf_pg.report.html import write_report
from rlhf_pg.report.run import report_run

__all__ = ["FrontierReport", "RunReport", "report_run", "write_report"]
