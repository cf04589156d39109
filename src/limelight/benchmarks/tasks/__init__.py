"""One benchmark a file, each ending in ``TASK = Task(...)``; ``limelight.benchmarks.task.tasks()`` lists this folder."""
