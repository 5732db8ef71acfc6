"""Machines: meshes and shardings, processes of one run, memory."""
