"""The pages of the documentation, and what is generated into them."""
