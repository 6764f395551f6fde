"""An application: what a job runs, once defined, used by many jobs."""

from __future__ import annotations

import msgspec

from balsam_core.errors import InvalidInput
from balsam_core.model.text import check_environ, check_text, shortened, title


class App(msgspec.Struct, omit_defaults=True):
    """An application that jobs name.

    Attributes:
        name: Unique name in this database.
        executable: Command template, e.g. ``"sim.x --x {x}"``. It is split like a shell line first, then each
            ``{parameter}`` is filled from the job's parameters, so that a value can't inject words or commands.
        description: Free text.
        preprocess: Command that runs in the job's working directory before it; empty for none.
        postprocess: Command that runs in the job's working directory after it; empty for none.
        environ: Environment variables for every job of this app.
    """

    name: str
    executable: str
    description: str = ""
    preprocess: str = ""
    postprocess: str = ""
    environ: dict[str, str] = {}

    def check(self) -> None:
        """Raise InvalidInput where a value can never work."""
        from balsam_core.model.command import check_template, split

        try:
            for field in self.__struct_fields__:
                kind = dict if field == "environ" else str
                if not isinstance(value := getattr(self, field), kind):
                    raise InvalidInput(f"{field} can't be {shortened(value)}; it must be of type {kind.__name__}")
            check_text("name", self.name, longest=255, empty=False)
            for field in ("description", "executable", "preprocess", "postprocess"):
                check_text(field, getattr(self, field))
            if not split(self.executable, what="executable"):
                raise InvalidInput("the executable is empty; give the command that its jobs run")
            for field in ("executable", "preprocess", "postprocess"):
                check_template(getattr(self, field), what=field)
            check_environ("environ", self.environ)
        except InvalidInput as err:
            raise InvalidInput(f"{title('app', str(self.name))}: {err}") from None
