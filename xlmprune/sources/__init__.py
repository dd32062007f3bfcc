"""Where data comes from: the hub, the official XGLUE folder, or a user's own files."""
