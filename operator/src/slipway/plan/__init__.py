"""Pure builders: from a resource's spec to the objects that should exist for it."""
