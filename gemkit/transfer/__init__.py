"""From a teacher to its students: what a teacher says about examples, kept so that many students can read it."""
