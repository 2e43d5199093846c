"""Access control: twisted.cred portals and JSON Web Tokens."""
