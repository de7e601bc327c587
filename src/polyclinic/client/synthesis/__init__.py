"""Made cases: generators that learn at the server or at the sites, and a model that learns from what they make."""
