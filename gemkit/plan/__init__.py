"""What a run would do on a cluster that need not be there: memory, communication, time of a step, what does not fit."""
