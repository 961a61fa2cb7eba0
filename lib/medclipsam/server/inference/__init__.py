"""From a request to a mask: the queue, the loaded models and the tasks."""
