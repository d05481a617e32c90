"""What a model folder says without loading it: shapes, zeros, licence."""
