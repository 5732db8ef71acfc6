"""What is measured: scores, text, speed, streams, costs of compiled programs."""
