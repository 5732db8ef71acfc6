"""What is typed and what is shown: command line, progress, tables, interrupts."""
