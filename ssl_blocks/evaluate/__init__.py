"""Evaluation as a command: any encoder, by any of the protocols, with a table and files as a result."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.evaluate.cli import evaluate, main, prepare
    from ssl_blocks.evaluate.config import EvaluateConfig
    from ssl_blocks.evaluate.rows import TASKS, Row, Setup
    from ssl_blocks.evaluate.subject import Subject, find_subject
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = ["TASKS", "EvaluateConfig", "Row", "Setup", "Subject", "evaluate", "find_subject", "main", "prepare"]
