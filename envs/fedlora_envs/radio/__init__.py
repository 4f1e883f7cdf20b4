"""Radio links as arrays: from geometry to goodput."""
