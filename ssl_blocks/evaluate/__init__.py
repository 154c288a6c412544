"""Evaluation as a command: any encoder, by any of the protocols, with a table and files as a result."""

from ssl_blocks.evaluate.cli import main as main
