"""Checks for users' own parts, encoders and objectives.

Each tells what passed and what did not apply, or raises a `RoleError`, an ``AssertionError`` that names the first
broken promise. Where images are told from each other, a single one is a ``ValueError``.
"""

from ssl_blocks.testing.draw_checks import check_partitioner, check_serializer
from ssl_blocks.testing.encoders import check_token_encoder
from ssl_blocks.testing.leak_case import LeakError, NotApplicableError
from ssl_blocks.testing.leak_function import Predicted, watch_loss
from ssl_blocks.testing.leaks import LeakReport, assert_no_leak, check_leaks
from ssl_blocks.testing.mask_checks import check_mask_builder
from ssl_blocks.testing.noise_floor import NoiseFloor, noise_floor
from ssl_blocks.testing.objective_checks import check_objective
from ssl_blocks.testing.reader_checks import check_reader
from ssl_blocks.testing.role_case import RoleError, RoleReport
from ssl_blocks.testing.target_checks import check_loss, check_target
from ssl_blocks.testing.waits import WaitError, assert_no_wait

__all__ = [
    "LeakError",
    "LeakReport",
    "NoiseFloor",
    "NotApplicableError",
    "Predicted",
    "RoleError",
    "RoleReport",
    "WaitError",
    "assert_no_leak",
    "assert_no_wait",
    "check_leaks",
    "check_loss",
    "check_mask_builder",
    "check_objective",
    "check_partitioner",
    "check_reader",
    "check_serializer",
    "check_target",
    "check_token_encoder",
    "noise_floor",
    "watch_loss",
]
