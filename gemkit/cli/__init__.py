"""The command line. Each subcommand has a file; whatever is heavy is imported when a command runs."""
