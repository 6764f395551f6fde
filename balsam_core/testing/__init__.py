"""The conformance suite: whether a backend is right, by one command on an installed plugin.

``python -m balsam_core.testing DBTYPE`` runs the tests in :mod:`balsam_core.testing.suite` against the installed
backend of that db type, through the API and the command line that users have. It needs
``pip install balsam-core[testing]``.

No test knows a backend's name. What differs between backends is the server policy, which optional hooks there are, and
the words in :data:`CAPABILITIES` that :attr:`balsam_core.plugin.DBType.capabilities` may hold.
"""

from __future__ import annotations

__all__ = ["CAPABILITIES"]

CAPABILITIES = {
    "served-only": "The server policy is optional, so that init works on the files, but without the server open_db "
    "raises ServerNotRunning: for an engine whose files no second program may open.",
    "plain-paths": "The path of a DB directory must hold no question mark: for an engine that can't open a file there.",
}
"""The words of ``DBType.capabilities`` and what each means; a word that is not here fails the suite."""
