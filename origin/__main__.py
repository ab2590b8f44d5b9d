"""Reads settings, runs the origin on uvloop: `python -m origin`."""

import sys

from origin.app import run
from shared.config import ORIGIN
from shared.process import main

sys.exit(main(ORIGIN, run))
