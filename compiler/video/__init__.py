"""What a bundle needs for video: pairs of frames to fit to, conditional tables, and when a frame counts as unchanged."""
