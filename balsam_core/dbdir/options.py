"""What ``balsam init --option NAME=VALUE`` says now, or said when the DB was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balsam_core.dbdir.directory import DBDir


def option_value(db: DBDir, options: Mapping[str, str], name: str, default: str = "") -> str:
    """Return the option that ``balsam_init_db`` was given, else the DB's setting of that name, else the default."""
    return options.get(name, db.settings.get(name, default))


def option_choice(db: DBDir, options: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Return such an option, which must be one of several words; the first one is the default.

    Raises:
        InvalidInput: It is another word.
    """
    word = option_value(db, options, name, choices[0])
    if word not in choices:
        raise InvalidInput(f"the option {name} is {word!a}; it must be {' or '.join(choices)}")
    return word
