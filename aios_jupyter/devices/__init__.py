"""What a node has and how busy it is."""
