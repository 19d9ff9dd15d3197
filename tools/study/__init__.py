"""The miniature study: its runs, the jobs that they need, and the workers that do them."""
