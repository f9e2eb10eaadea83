"""What happens between the subjects, as a prompt."""
