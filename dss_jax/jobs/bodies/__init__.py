"""The JSON that clients send and get: checked, and what it asks for."""
