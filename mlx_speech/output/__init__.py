"""A transcript -> text, subtitles, files and a picture."""
