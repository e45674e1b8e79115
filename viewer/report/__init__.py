"""A run or an evaluation as one HTML file that needs no network: `write_report`."""

from solostream.viewer.report.training import write_report

__all__ = ["write_report"]
