"""What an operator does with a machine that was built: settings on its disk, and scripts for each place."""
