"""Whether new statistics are safe: blends, held-out outputs, evidence and warnings."""
