"""Pure data and rules: states, jobs, apps, filters and calls. Knows nothing of databases, files or processes."""
