"""What reaches each batch norm: its moments, in one pass or layer by layer, here or elsewhere."""
