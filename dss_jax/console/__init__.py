"""The web console of a job server: pages over the objects that the API calls, too."""
