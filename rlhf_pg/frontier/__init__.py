"""The grid behind a frontier of reward against KL: which runs there are, getting them done, and the reference's samples."""
