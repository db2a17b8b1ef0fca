"""Running programs as a user that the machine does not know."""

from __future__ import annotations

import os
import shutil

import pytest

UNKNOWN_USER = 54_321
"""Of whom no file of the machine says anything, and who has no home directory."""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can be another user"
)


def as_unknown_user() -> tuple[str, ...]:
    """What comes before a command that is to run as the unknown user, in a group of that number.

    It may read everything, as the interpreter of the tests may be where only root can; it may
    write only what any other user may.
    """
    return (
        *("setpriv", f"--reuid={UNKNOWN_USER}", f"--regid={UNKNOWN_USER}", "--clear-groups"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    )
