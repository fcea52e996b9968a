"""From a checkpoint's files, local or on the hub, to weights on a device."""
