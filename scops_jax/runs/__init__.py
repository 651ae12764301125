"""What a run consists of: its parts, its work directory and the devices that it runs on."""
