"""Labels made by a network: the folder that holds them, which of their pixels count, and what people corrected."""
