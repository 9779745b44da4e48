"""A student judged on labelled rows."""
