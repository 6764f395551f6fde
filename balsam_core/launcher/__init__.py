"""The launcher: claims jobs, runs them as processes and records the results.

One process, one thread, one loop (:mod:`~balsam_core.launcher.loop`). A claimed job goes through these modules:

* :mod:`~balsam_core.launcher.claim_queue` claims jobs in batches, before they are needed.
* :mod:`~balsam_core.launcher.job.claimed_job` holds the lifecycle of one job as straight-line code.
* :mod:`~balsam_core.launcher.job_runner` starts the processes that jobs ask for, and tells each job how its process
  ended.
* :mod:`~balsam_core.launcher.reporter` collects the state changes of all jobs and writes them together.
"""
