"""What a user sees of a run and what is kept of it: metrics, progress, tables, alerts, figures, model cards."""

from rlhf_pg.tracking.alerts import Alerts
from rlhf_pg.tracking.card import model_card
from rlhf_pg.tracking.figures import training_figure
from rlhf_pg.tracking.log import RunLog
from rlhf_pg.tracking.records import read_metrics
from rlhf_pg.tracking.samples import SampleRow, safe_text, samples_table

__all__ = [
    "Alerts",
    "RunLog",
    "SampleRow",
    "model_card",
    "read_metrics",
    "safe_text",
    "samples_table",
    "training_figure",
]
