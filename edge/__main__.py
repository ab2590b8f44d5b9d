"""Reads settings, runs the edge on uvloop: `python -m edge`."""

import sys

from edge.app import run
from shared.config import EDGE
from shared.process import main

sys.exit(main(EDGE, run))
