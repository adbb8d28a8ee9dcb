"""Running statistics apart from their model: a small file for each domain."""
