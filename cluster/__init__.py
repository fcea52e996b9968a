"""The runtime: command line, job config, prompt sets, gangs, scheduling, commits, reports."""
