"""What a user asks for: study files, running them, statistics, results and the report."""
