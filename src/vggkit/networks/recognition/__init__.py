"""What a file of weights holds: entries, in sheets, compared with networks, told to people."""
