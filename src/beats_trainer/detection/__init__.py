"""From scores over time to events, tables and clips. Needs no torch.

windows with scores -> [average -> thresholds, hysteresis, merging] -> events -> summary, picture
                                                                             -> clips to listen to
"""

from beats_trainer.detection.averaging import OverlapAverage
from beats_trainer.detection.events import EventFinder, EventRules, Events, find_events
from beats_trainer.detection.export import export_clips
from beats_trainer.detection.summary import recorded_hours, summarise
from beats_trainer.detection.summary_picture import draw_summary

__all__ = [
    "EventFinder",
    "EventRules",
    "Events",
    "OverlapAverage",
    "draw_summary",
    "export_clips",
    "find_events",
    "recorded_hours",
    "summarise",
]
