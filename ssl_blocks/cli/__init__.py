"""The command line: arguments, help and errors of every recipe."""

from ssl_blocks.cli.command import load_config, main

__all__ = ["load_config", "main"]
