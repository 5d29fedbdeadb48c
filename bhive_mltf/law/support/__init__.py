"""What the tasks do in `run()`: library calls with the task's parameters."""
