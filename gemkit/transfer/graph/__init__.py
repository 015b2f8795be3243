"""Graphs of teachers and students: `gemkit transfer`."""
