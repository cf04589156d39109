"""One benchmark per file, each ending in ``TASK = Task(...)``; ``limelight.benchmarks.task.tasks()`` lists them."""
