"""What of a parameter is on which rank, how sums are taken over ranks, and which layouts are refused."""
