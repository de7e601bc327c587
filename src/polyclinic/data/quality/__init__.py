"""What a person should know of tables before training: each module finds one kind of mistake and says so in notes."""
