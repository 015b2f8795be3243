"""Metrics of binary tasks: exact (`collector`) and in bounded memory (`streaming`)."""
