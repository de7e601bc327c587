"""What happens between sites and server: messages, and later compression, privacy and encryption."""
