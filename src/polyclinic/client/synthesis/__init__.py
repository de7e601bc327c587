"""Made cases: a generator that learns from what sites say of its images."""
