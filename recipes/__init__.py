"""Scripts a user copies: fine-tuning, benchmarks."""
