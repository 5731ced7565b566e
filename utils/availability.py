"""What to say where a metric cannot be computed on this machine."""


class MetricUnavailable(RuntimeError):
    """A metric needs what is not here; the message says what, and how to come by it.

    Such a metric is reported with this text in place of a figure; the others stand.
    """
