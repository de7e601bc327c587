"""What a Python program or a plug-in gives in the place of files and names."""
