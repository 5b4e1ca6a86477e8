"""Window scores of a recording -> events -> tables that the field's programs open. Needs no torch."""
