"""What a user sees of a run and what is kept of it: metrics, progress, tables, alerts, figures, model cards."""

from rlhf_pg.tracking.alerts import Alerts
from rlhf_pg.tracking.card import model_card
from rlhf_pg.tracking.figures import training_figure
from rlhf_pg.tracking.log import RunLog
from rlhf_pg.tracking.records import TABLES, read_metrics, read_table
from rlhf_pg.tracking.samples import SampleRow, safe_text, samples_table

__all__ = [
    "TABLES",
    "Alerts",
    "RunLog",
    "SampleRow",
    "model_card",
    "read_metrics",
    "read_table",
    "safe_text",
    "samples_table",
    "training_figure",
]
