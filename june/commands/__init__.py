"""The commands, one in each file: it reads its arguments, calls the lower layers and prints."""
