"""Terminal input and output: command line, progress, tables, interrupts."""
