"""One step, from the parameters to what is written: plumbing without formulas."""
