"""torch lives here: cuts, bottlenecks, training, tables, export, verification."""
