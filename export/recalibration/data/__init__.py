"""The user's own data: batches that fit a model, whatever their size and form."""
