"""The output of a job: store, segments, leases and clean-up."""
