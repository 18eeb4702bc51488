"""From one placement to another: what moves buy, whether they pay, and how to carry them out."""
