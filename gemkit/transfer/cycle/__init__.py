"""Day by day: students serve, labels arrive, teacher and students go on. `gemkit cycle`."""
