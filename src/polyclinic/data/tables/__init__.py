"""Tables: their cells, codes and numbers, and the rows, features and labels made of them."""
