"""The hosted service's REST API on one's own machines: jobs, models, endpoints."""
