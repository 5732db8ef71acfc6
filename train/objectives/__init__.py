"""What training minimises: one kind of objective a file."""
