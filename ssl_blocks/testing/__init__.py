"""Checks for users' own parts, encoders and objectives."""

from ssl_blocks.testing.encoder_case import EncoderError
from ssl_blocks.testing.encoders import EncoderReport, check_token_encoder
from ssl_blocks.testing.leaks import LeakError, assert_no_leak

__all__ = ["EncoderError", "EncoderReport", "LeakError", "assert_no_leak", "check_token_encoder"]
