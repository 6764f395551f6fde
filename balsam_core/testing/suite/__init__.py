"""The tests of the conformance suite; run them by ``python -m balsam_core.testing DBTYPE``."""
