"""What a dataset folder must hold: every rule of the format, told as violations with file, column and rows."""
