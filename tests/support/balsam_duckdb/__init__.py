"""A backend on DuckDB, for the tests: an engine without savepoints, whose file one program may open at a time."""
