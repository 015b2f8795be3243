"""Tools for tests of gemkit and of plugins."""
