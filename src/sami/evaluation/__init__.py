"""Evidence: what a policy’s held-out responses show, and what judges say of them."""
