"""A pre-training that kills itself; started by ``test_pretraining.py``.

Arguments: the recordings, the folder of the run, the settings as JSON, and the training step, counted from this
process's first, before which it sends itself SIGKILL (0: never).
"""

import json
import os
import signal
import sys

from beats_trainer import BEATsPretrainer, pretraining_config
from beats_trainer.training import pretraining_module

recordings, output, settings, stops_at = sys.argv[1:]
given = json.loads(settings)
pretraining_config.SIZES["nano"] = pretraining_config.Size(*given.pop("size"))
step_of = pretraining_module.PretrainingModule.training_step
steps = 0


def training_step(self, batch, batch_idx):
    global steps
    steps += 1
    if steps == int(stops_at):
        os.kill(os.getpid(), signal.SIGKILL)
    return step_of(self, batch, batch_idx)


pretraining_module.PretrainingModule.training_step = training_step
BEATsPretrainer(recordings, output, **given).run()
print("done")
