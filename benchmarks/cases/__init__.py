"""What the benchmarks measure, by subject: cases, their inputs, and the implementations of them."""
