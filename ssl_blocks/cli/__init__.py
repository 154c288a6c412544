"""The command line: arguments, help and errors of every recipe."""

from ssl_blocks.cli.command import load_config as load_config, main as main
