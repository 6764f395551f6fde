"""Tables, portable types and migrations. The only place that knows how one database differs from another in SQL."""
