"""A small distributed engine: tasks, actors, shared-memory objects, placement groups."""
