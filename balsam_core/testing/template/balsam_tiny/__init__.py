"""A tiny database for Balsam; the hooks are in :mod:`balsam_tiny.backend`."""
