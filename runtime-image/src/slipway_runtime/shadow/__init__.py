"""The comparator of a shadow rollout: it gets copies of requests, asks both revisions, and counts how their answers differ."""
