"""A stranger's backend: the template, built and installed as a distribution of its own, passes by the one command."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
# The whole of it passes in tests/conformance, on variants of the template.
PART = ["-k", "test_identity or test_init or test_transport"]


def build(source: Path, target: Path, environ: Mapping[str, str]) -> Path:
    """Build a wheel."""
    before = set(target.glob("*.whl"))
    run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", target, source], environ)
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


def run(argv: list[str | Path], environ: Mapping[str, str], cwd: Path | None = None) -> str:
    environ = {name: value for name, value in environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(argv, env=environ, cwd=cwd, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    return done.stdout


def test_the_template_passes_on_installed_wheels(tmp_path: Path, original_environ: dict[str, str]) -> None:
    core = build(ROOT, tmp_path / "dist", original_environ)
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run([*pip, f"{core}[testing]"], original_environ)
    run([python, "-m", "balsam_core.testing", "template", tmp_path / "mine"], original_environ)
    run([*pip, build(tmp_path / "mine", tmp_path / "dist", original_environ)], original_environ)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Nothing of the place may matter, not even what would break any pytest.
    (elsewhere / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (elsewhere / "conftest.py").write_text("raise RuntimeError\n")
    environ = {"PATH": os.defpath, "HOME": str(tmp_path), "TMPDIR": str(elsewhere), "LC_ALL": "C.UTF-8"}
    out = run(
        [python, "-m", "balsam_core.testing", "tiny", "--option", "cache=500", "-q", *PART], environ, cwd=elsewhere
    )
    assert " passed" in out.splitlines()[-1]
    assert sorted(path.name for path in elsewhere.iterdir()) == ["conftest.py", "pytest.ini"]
