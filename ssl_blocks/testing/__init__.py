"""Checks for users' own parts, encoders and objectives."""

from ssl_blocks.testing.leaks import LeakError, assert_no_leak

__all__ = ["LeakError", "assert_no_leak"]
