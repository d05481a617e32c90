"""The shipped tasks: four-way choices over the embedded documentation."""
