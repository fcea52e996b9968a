"""Ray's private names. They are texts that Ray reads or writes: one that is gone does nothing."""

AUTHENTICATION_LOGGER = "ray._private.authentication"  # warns whenever Ray starts as it should
TIMESTAMP_FIELD = "_ray_timestamp_ns"  # that Ray adds to log records
METRICS_PORT = "_metrics_export_port"  # option of `ray.init`: where Prometheus is served
