"""The documentation says what the code says."""

from __future__ import annotations

from pathlib import Path

from balsam_core import errors

DOCS = Path(__file__).parents[2] / "docs"


def test_every_error_and_its_exit_code_is_documented() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text()
    kinds: list[type[errors.BalsamError]] = [errors.BalsamError, *errors._BY_CODE.values()]
    for kind in kinds:
        assert f"| {kind.exit_code} | `{kind.code}` | {(kind.__doc__ or '').splitlines()[0]} |" in text


def test_links_in_the_documentation_lead_somewhere() -> None:
    import re

    for page in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page} links to {target}"
