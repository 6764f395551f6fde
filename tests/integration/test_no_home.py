"""A user without HOME and without an entry in the list of users, as in a container; and a broken time zone."""

from __future__ import annotations

import os
import shutil

import pytest
from balsam_program import BALSAM, Program

from balsam_core.errors import SettingsError

HOMELESS = 54321


@pytest.fixture
def homeless(path):
    """The program as such a user, whose DB this is."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("only root can be somebody else, by setpriv")
    for folder, _, files in os.walk(path):
        for name in (".", *files):
            os.chown(os.path.join(folder, name), HOMELESS, HOMELESS)  # noqa: PTH118
    keep = "+dac_read_search"  # the interpreter may be in a closed folder
    become = [setpriv, f"--reuid={HOMELESS}", "--inh-caps", keep, "--ambient-caps", keep]
    return Program([*become, "env", "-i", *BALSAM])


def test_a_named_db_works_and_no_db_is_told_in_a_line(homeless, path):
    for words in (["ls"], ["job", "--command", "true"], ["status"]):
        homeless.good("--db", path, *words)
    homeless.good("plugins", "list")
    for words in (["ls"], ["status"], ["config", "show"]):
        assert "no home directory: set HOME" in homeless.refused(*words, code=SettingsError.exit_code)


@pytest.mark.parametrize("zone", ["Nowhere/x", ":garbage", ""])
def test_a_broken_time_zone_hinders_nothing(path, zone):
    balsam = Program(BALSAM, env={"TZ": zone})
    for words in (["job", "--command", "true"], ["ls"], ["status"]):
        balsam.good("--db", path, *words)
