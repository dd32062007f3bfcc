"""What everything else stands on: errors, files, run folders, devices, languages, progress."""
