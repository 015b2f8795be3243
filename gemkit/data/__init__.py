"""From source files to batches: schema, fetch, build, dataset folder, loader."""
