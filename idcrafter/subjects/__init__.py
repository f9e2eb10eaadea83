"""Who is in the video: subjects, their photos, and how those are prepared."""
