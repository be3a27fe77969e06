"""Names and signatures of other libraries, on this one's kernels."""
