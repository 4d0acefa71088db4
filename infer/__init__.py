"""From a checkpoint and a prompt to a video, and from a video to numbers."""
