"""The commands of `rlhf-pg reward`, one a module; each imports what it runs once it runs."""
