"""The routes of the API, who may call them, and its lists."""
