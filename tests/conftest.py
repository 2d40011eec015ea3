"""Shared by all tests; that it is here puts this folder on the path of tests in subfolders."""

import os
import signal

import torch

# Tables are as wide as the terminal; wide enough here that no line of one is broken.
os.environ["COLUMNS"] = "200"
# Tests run in several processes; torch's own threads would only get in each other's way.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start
# What a shell or nohup has ignored, children inherit; tests send these to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
