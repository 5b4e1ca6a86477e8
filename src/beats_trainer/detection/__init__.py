"""From scores over time to events, tables and clips. Needs no torch.

windows with scores -> [average -> thresholds, hysteresis, merging] -> events -> summary, picture
                                                                             -> clips to listen to
"""

from beats_trainer.detection.averaging import OverlapAverage
from beats_trainer.detection.events import EventFinder, EventRules, Events, find_events
from beats_trainer.detection.export import export_clips
from beats_trainer.detection.outputs import Detections
from beats_trainer.detection.reading import read_detections
from beats_trainer.detection.summary import recorded_hours, summarise
from beats_trainer.detection.summary_picture import draw_summary
from beats_trainer.detection.writing import write_detections

__all__ = [
    "Detections",
    "EventFinder",
    "EventRules",
    "Events",
    "OverlapAverage",
    "draw_summary",
    "export_clips",
    "find_events",
    "read_detections",
    "recorded_hours",
    "summarise",
    "write_detections",
]
