"""A student: its folder, its first weights, its answers, its export."""
