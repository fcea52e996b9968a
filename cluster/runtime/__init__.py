"""The driver of a job: its loop, queues, gangs, recovery and placement on a Ray cluster."""
