"""The launcher: the pilot that claims jobs, runs them as processes and records what became of them.

One process, one thread, one loop (:mod:`~balsam_core.launcher.loop`). What a single job goes through is written down as
a straight line in :mod:`~balsam_core.launcher.job.task`; :mod:`~balsam_core.launcher.crew` only starts the processes
that a job asks for and tells it how they ended. The database is told once a tick
(:mod:`~balsam_core.launcher.reporter`), and asked for jobs ahead of need (:mod:`~balsam_core.launcher.feed`).
"""
