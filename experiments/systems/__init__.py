"""What can be measured: one adapter a file."""
