"""What methods attach to a sparse linear: layers, their functions, their fold."""
