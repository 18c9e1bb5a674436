"""Exit statuses of the commands of bench."""

COMPLETE = 0
FAILED = 1
NO_DEVICE = 2  # nor with such options
UNUSABLE = 69  # nothing of it can run here; the last line of the output is the reason
RESTART = 70  # the device's context is broken: a new process can continue
UNFINISHED = 75  # time is up: the next run continues
INTERRUPTED = 130  # as a shell has it
