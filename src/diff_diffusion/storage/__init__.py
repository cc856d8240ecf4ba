"""Model folders: what is written says everything and runs nothing."""
