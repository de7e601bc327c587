"""What predictions of test cases say, and how sure that is: computed where they lie, at a site or not."""
