"""Benchmark a model's artefacts on this machine: the same as `edge bench`."""

import sys

from edge.cli.main import run_one

sys.exit(run_one("bench", "bench.py"))
