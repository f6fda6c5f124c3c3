"""What downstream services import, and the `tidegate` command."""
