"""Compiling blocks, and keeping what was compiled for later runs."""
