"""How far the data is from what is stored: numbers, words and a page."""
