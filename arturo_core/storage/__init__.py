"""How the state is kept between steps, apart from the arithmetic on it: float32, bfloat16 or 8 bits."""
