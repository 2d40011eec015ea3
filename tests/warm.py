"""A merge in this process, so that those forked from it have loaded and compiled everything."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from merges import DARE, LINEAR, TIES, run, write_models

with TemporaryDirectory() as folder:
    models = write_models(Path(folder))
    for name, spec in {"linear": LINEAR, "ties": TIES, "dare": DARE}.items():
        run(models, spec, out=name)
