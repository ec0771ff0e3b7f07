"""`make gpu`: everything that only a GPU can prove or refute, in one command."""
